"""MaxSim scores between words and frames: token-wise interaction (ti) and its weighted form (wti).

From "Disentangled Representation Learning for Text-Video Retrieval" (Wang et al., 2022, arXiv:2203.07111), section 3.
Pure functions of tensors and masks: no collective, no training flag. A texts of T words, B videos of V frames, width D;
masks are 1 for real and 0 for padding.

`token_interaction` is the formula. Training computes it with `token_interaction_in_blocks`, evaluation with
`pack_tokens` and `packed_interaction`; both hold the cosines (A,T,V,B) of one block of texts and videos at a time.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

WTI_ARCHITECTURES = (1, 2, 3)
WTI_PADDINGS = ("zero", "exclude")
BLOCK_BYTES = 1 << 24  # memory for the cosines of a block, which then stay in a processor's last cache


def weight_mlp(width: int, arch: int) -> nn.Module:
    """Build the network from tokens (..., D) to weight logits (..., 1): `arch` linear layers with ReLU in between.

    Weights are initialized normally with std 0.02, biases with 0.

    Raises: ValueError for an unknown `arch`.
    """
    if arch not in WTI_ARCHITECTURES:
        raise ValueError(f"wti_arch {arch!r} is unknown; choose from {', '.join(map(str, WTI_ARCHITECTURES))}")
    layers: list[nn.Module] = []
    for _ in range(arch - 1):
        layers += [nn.Linear(width, width), nn.ReLU(inplace=True)]
    layers.append(nn.Linear(width, 1))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return layers[0] if arch == 1 else nn.Sequential(*layers)


def masked_softmax(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the softmax of logits (N,L) over the valid tokens of mask (N,L); 0 on padding, all 0 in an empty row.

    >>> masked_softmax(torch.zeros(2, 3), torch.tensor([[1, 1, 0], [0, 0, 0]])).tolist()
    [[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]
    """
    valid = mask.bool()
    # the finite minimum, since -inf would make NaN of a row without a valid token
    return logits.masked_fill(~valid, torch.finfo(logits.dtype).min).softmax(dim=-1) * valid


def uniform_weights(mask: torch.Tensor) -> torch.Tensor:
    """Return float32 weights (N,L) of a mask (N,L): 1 / number of valid tokens, 0 on padding.

    >>> uniform_weights(torch.tensor([[1, 1, 0], [0, 0, 0]])).tolist()
    [[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]
    """
    mask = mask.float()
    return mask / mask.sum(dim=-1, keepdim=True).clamp(min=1)  # an empty row divides by 1


def token_interaction(
    text: torch.Tensor,
    video: torch.Tensor,
    text_mask: torch.Tensor,
    video_mask: torch.Tensor,
    text_weights: torch.Tensor,
    video_weights: torch.Tensor,
    padding: str = "zero",
) -> torch.Tensor:
    """Return the similarity (A,B) of every text with every video, in [-1, 1].

    text (A,T,D), video (B,V,D); masks and weights (A,T), (B,V).
    s = cosine of every word with every frame; text-to-video = sum_t w_t max_v s, video-to-text = sum_v w_v max_t s;
    the result is their mean. With `padding` "zero" a padded token has cosine 0 and takes part in the maximum, as in the
    training of the published checkpoints; with "exclude" it does not (the maximum over nothing is 0).

    Raises: ValueError for an unknown `padding`.

    >>> word, frames = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[3.0, 0.0], [0.0, 2.0]]])
    >>> one, two = torch.ones(1, 1), torch.ones(1, 2)
    >>> token_interaction(word, frames, one, two, one, torch.tensor([[0.25, 0.75]])).item()  # (1 + (0.25 + 0)) / 2
    0.625
    """
    check_padding(padding)
    cosine = torch.einsum("atd,bvd->abtv", F.normalize(text, dim=-1), F.normalize(video, dim=-1))
    valid_words, valid_frames = text_mask.bool(), video_mask.bool()
    valid = valid_words[:, None, :, None] & valid_frames[None, :, None, :]
    if padding == "zero":
        cosine = cosine * valid
        best_frame, best_word = cosine.amax(dim=3), cosine.amax(dim=2)  # (A,B,T), (A,B,V)
    else:
        cosine = cosine.masked_fill(~valid, -torch.inf)
        best_frame, best_word = finite_maximum(cosine, dim=3), finite_maximum(cosine, dim=2)
    text_to_video = torch.einsum("abt,at->ab", best_frame, text_weights)
    video_to_text = torch.einsum("abv,bv->ab", best_word, video_weights)
    return (text_to_video + video_to_text) / 2


def finite_maximum(scores: torch.Tensor, dim: int) -> torch.Tensor:
    """Return the maximum along `dim`, 0 if every score is -inf."""
    maximum = scores.amax(dim=dim)
    return maximum.masked_fill(maximum == -torch.inf, 0.0)


def check_padding(padding: str) -> None:
    """Raise ValueError for an unknown `padding`."""
    if padding not in WTI_PADDINGS:
        raise ValueError(f"wti_padding {padding!r} is unknown; choose from {', '.join(WTI_PADDINGS)}")


def token_interaction_in_blocks(
    text: torch.Tensor,
    video: torch.Tensor,
    text_mask: torch.Tensor,
    video_mask: torch.Tensor,
    text_weights: torch.Tensor,
    video_weights: torch.Tensor,
    padding: str = "zero",
    block_bytes: int = BLOCK_BYTES,
) -> torch.Tensor:
    """Compute `token_interaction` in bounded memory, differentiable once: same arguments, same (A,B).

    If several tokens tie for a maximum, the gradient goes to one of them; the plain formula splits it.
    Under autocast the cosines have its dtype; sums are in float32 or better.
    """
    words = fill_padding(unit_vectors(text), text_mask, padding)
    frames = fill_padding(unit_vectors(video), video_mask, padding)
    device = text.device.type
    if torch.is_autocast_enabled(device):
        words, frames = (tokens.to(torch.get_autocast_dtype(device)) for tokens in (words, frames))
    best_frame, best_word = map(promote_to_float32, MaxSim.apply(words, frames, block_bytes))
    # products and sums instead of matrix products, which autocast would round
    text_to_video = (best_frame * text_weights.unsqueeze(2)).sum(dim=1)
    video_to_text = (best_word * video_weights.T).sum(dim=1)
    return (text_to_video + video_to_text) / 2


def promote_to_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Return float16 and bfloat16 as float32, other dtypes unchanged."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def unit_vectors(tokens: torch.Tensor) -> torch.Tensor:
    """Divide tokens (..., D) by their L2 norms; a zero vector stays zero."""
    # in float16 the epsilon that keeps the quotient finite would be 0
    return F.normalize(promote_to_float32(tokens), dim=-1).to(tokens.dtype)


def fill_padding(tokens: torch.Tensor, mask: torch.Tensor, padding: str) -> torch.Tensor:
    """Replace the padding of unit tokens (N,L,D), mask (N,L), so that maxima need no mask.

    With "zero" padding becomes zero vectors, whose cosine is 0 with everything; with "exclude" it repeats a valid token
    of its row, which changes no maximum. A row without a valid token becomes zero vectors.
    """
    check_padding(padding)
    valid = mask.bool()
    if padding == "exclude":
        rows = torch.arange(len(tokens), device=tokens.device)
        repeated = tokens[rows, valid.int().argmax(dim=1)].unsqueeze(1)
        tokens = torch.where(valid.unsqueeze(-1), tokens, repeated)
        valid = valid.any(dim=1, keepdim=True)
    return tokens * valid.unsqueeze(-1)


class MaxSim(torch.autograd.Function):
    """Largest cosine of every word over each video's frames, and of every frame over each text's words.

    Unit words (A,T,D) and frames (B,V,D) -> (A,T,B), (A,V,B). Autograd of the formula keeps several copies of the
    cosines (A,T,V,B); this keeps the indices of the maxima, in one or two bytes each.
    """

    @staticmethod
    def forward(ctx, words: torch.Tensor, frames: torch.Tensor, block_bytes: int) -> tuple[torch.Tensor, torch.Tensor]:
        best_frame = words.new_empty(*words.shape[:2], frames.shape[0])
        best_word = words.new_empty(words.shape[0], frames.shape[1], frames.shape[0])
        index_type = torch.uint8 if max(words.shape[1], frames.shape[1]) <= 256 else torch.int16
        frame_index = torch.empty_like(best_frame, dtype=index_type)
        word_index = torch.empty_like(best_word, dtype=index_type)
        for texts, videos, some_words, some_frames in pair_blocks(words, frames, block_bytes):
            block = (texts, slice(None), videos)
            cosine = cosines(some_words, some_frames)
            if any(ctx.needs_input_grad):
                best_frame[block], frame_index[block] = cosine.max(dim=2)
                best_word[block], word_index[block] = cosine.max(dim=1)
            else:  # a maximum without indices takes a tenth of the time
                best_frame[block], best_word[block] = cosine.amax(dim=2), cosine.amax(dim=1)
        ctx.save_for_backward(words, frames, frame_index, word_index)
        ctx.block_bytes = block_bytes
        return best_frame, best_word

    @staticmethod
    def backward(ctx, frame_gradient: torch.Tensor, word_gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        words, frames, frame_index, word_index = ctx.saved_tensors
        exact = torch.promote_types(words.dtype, torch.float32)  # dtype of the sum over blocks
        to_words, to_frames = torch.zeros_like(words, dtype=exact), torch.zeros_like(frames, dtype=exact)
        for texts, videos, some_words, some_frames in pair_blocks(words, frames, ctx.block_bytes):
            block = (texts, slice(None), videos)
            shape = (*some_words.shape[:2], *some_frames.shape[:2])
            to_cosine = words.new_zeros(shape)
            to_cosine.scatter_(2, frame_index[block].long().unsqueeze(2), frame_gradient[block].unsqueeze(2))
            to_cosine.scatter_add_(1, word_index[block].long().unsqueeze(1), word_gradient[block].unsqueeze(1))
            to_cosine = to_cosine.view(shape[0] * shape[1], shape[2] * shape[3])
            to_words[texts] += (to_cosine @ some_frames.flatten(0, 1)).view_as(some_words)
            to_frames[videos] += (to_cosine.T @ some_words.flatten(0, 1)).view_as(some_frames).transpose(0, 1)
        return to_words.to(words.dtype), to_frames.to(frames.dtype), None


def cosines(words: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Return the cosines (A,T,V,B) of unit words (A,T,D) and frames (V,B,D) in their dtype, under autocast too.

    With the videos last, every maximum reads contiguous rows.
    """
    with torch.autocast(words.device.type, enabled=False):
        return (words.flatten(0, 1) @ frames.flatten(0, 1).T).view(*words.shape[:2], *frames.shape[:2])


def block_side(tokens: torch.Tensor, block_bytes: int) -> int:
    """Return the number of words, and of frames, of a square block of cosines that takes about `block_bytes`."""
    return math.isqrt(block_bytes // tokens.element_size())


def pair_blocks(
    words: torch.Tensor, frames: torch.Tensor, block_bytes: int
) -> Iterator[tuple[slice, slice, torch.Tensor, torch.Tensor]]:
    """Yield blocks of words (A,T,D) and frames (B,V,D): slices of texts and videos, words (A,T,D), frames (V,B,D)."""
    side = block_side(words, block_bytes)
    texts, videos = max(1, side // words.shape[1]), max(1, side // frames.shape[1])
    for first_video in range(0, frames.shape[0], videos):
        some_videos = slice(first_video, first_video + videos)
        some_frames = frames[some_videos].transpose(0, 1).contiguous()
        for first_text in range(0, words.shape[0], texts):
            some_texts = slice(first_text, first_text + texts)
            yield some_texts, some_videos, words[some_texts], some_frames


class PackedTokens(NamedTuple):
    """The M valid tokens of N texts or videos, row after row, with all that scoring needs.

    A row without a valid token has one zero vector of weight 0, whose cosine is 0 with everything.
    """

    vectors: torch.Tensor  # (M,D) unit vectors (in an index of a cross encoder: of any length)
    weights: torch.Tensor  # (M,) sum to 1 over each row
    counts: torch.Tensor  # (N,) tokens of each row, at least 1
    floor: torch.Tensor  # (N,) lower bound of maxima over a row: 0 if dropped padding has cosine 0, else -inf


def pack_tokens(
    tokens: torch.Tensor,
    mask: torch.Tensor,
    weight_network: Callable[[torch.Tensor], torch.Tensor] | None = None,
    padding: str = "zero",
    dtype: torch.dtype = torch.float32,
) -> PackedTokens:
    """Pack the valid tokens of (N,L,D), mask (N,L), for `packed_interaction`; vectors are stored in `dtype`.

    `weight_network` maps tokens (M,D) to logits (M,1); without it all valid tokens of a row weigh the same.
    """
    check_padding(padding)
    valid = mask.bool()
    if weight_network is None:
        weights = uniform_weights(mask)
    else:
        logits = weight_network(tokens[valid]).squeeze(-1)
        weights = masked_softmax(logits.new_zeros(valid.shape).masked_scatter(valid, logits).float(), mask)
    kept = valid.clone()
    kept[:, 0] |= ~valid.any(dim=1)
    vectors = unit_vectors(tokens[kept]) * valid[kept].unsqueeze(-1)
    counts_as_zero = ~valid.all(dim=1) if padding == "zero" else torch.zeros_like(valid[:, 0])
    floor = torch.zeros_like(weights[:, 0]).masked_fill(~counts_as_zero, -math.inf)
    return PackedTokens(vectors.to(dtype), weights[kept], kept.sum(dim=1), floor)


def weighted_sums(packed: PackedTokens) -> torch.Tensor:
    """Return the weighted sum of each row's vectors, (N,D) on the CPU, where additions have a fixed order."""
    vectors, weights, counts = (part.cpu().numpy() for part in (packed.vectors, packed.weights, packed.counts))
    return torch.from_numpy(np.add.reduceat(vectors * weights[:, np.newaxis], np.cumsum(counts) - counts))


@torch.no_grad()
def packed_interaction(texts: PackedTokens, videos: PackedTokens, block_bytes: int = BLOCK_BYTES) -> torch.Tensor:
    """Compute `token_interaction` of all packed texts with all packed videos: (A,B) in float32 on the CPU.

    Cosines have the dtype of the packed vectors; maxima and sums have that of the weights, float32.
    """
    similarity = torch.empty(len(texts.counts), len(videos.counts))
    side = block_side(texts.vectors, block_bytes)
    video_blocks = [
        (columns, videos.vectors[places], videos.weights[places], videos.floor[columns])
        for columns, places in equal_count_blocks(videos.counts, side)
    ]
    for rows, places in equal_count_blocks(texts.counts, side):
        words, text_weights = texts.vectors[places.T.contiguous()], texts.weights[places.T].unsqueeze(2)
        text_floor = texts.floor[rows, None, None]
        scores = text_weights.new_empty(len(rows), len(videos.counts))
        for columns, frames, video_weights, video_floor in video_blocks:
            cosine = cosines(words, frames)
            best_frame = cosine.amax(dim=2).maximum(video_floor)  # (A,T,B)
            best_word = cosine.amax(dim=1).maximum(text_floor)  # (A,V,B)
            scores[:, columns] = ((best_frame * text_weights).sum(dim=1) + (best_word * video_weights).sum(dim=1)) / 2
        similarity[rows.cpu()] = scores.cpu()
    return similarity


def equal_count_blocks(counts: torch.Tensor, tokens: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield blocks of packed rows (N,) that have the same number of tokens L, and the tokens' places (L,N).

    A block holds about `tokens` tokens.
    """
    first_place = counts.cumsum(dim=0) - counts
    for count in counts.unique().tolist():
        for rows in (counts == count).nonzero().squeeze(1).split(max(1, tokens // count)):
            yield rows, first_place[rows] + torch.arange(count, device=counts.device).unsqueeze(1)
