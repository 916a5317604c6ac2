"""Scores from the best matches between words and frames: token-wise interaction (ti) and its weighted form (wti).

From "Disentangled Representation Learning for Text-Video Retrieval" (Wang et al., 2022, arXiv:2203.07111), section 3.
Pure functions of tensors and masks: no collective, no training flag. A texts of T words, B videos of V frames, width D;
masks are 1 for real and 0 for padding.

`token_interaction` is the formula. Training computes it by `token_interaction_in_blocks`, evaluation by `pack_tokens`
and `packed_interaction`; both hold the cosines (A,T,V,B) of one block of texts and videos at a time.
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
BLOCK_BYTES = 1 << 24  # of the cosines held at once: what a processor's last cache keeps until they are read back


def weight_mlp(width: int, arch: int) -> nn.Module:
    """Network that gives each token (..., D) one weight logit (..., 1): `arch` linear layers with ReLU between.

    Weights start normal with std 0.02, biases at 0. Raises ValueError for an unknown `arch`.
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
    """(N, L) logits -> (N, L) weights: softmax over valid tokens, 0 on padding, all 0 where nothing is valid.

    >>> masked_softmax(torch.zeros(2, 3), torch.tensor([[1, 1, 0], [0, 0, 0]])).tolist()
    [[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]
    """
    valid = mask.bool()
    # the finite minimum instead of -inf: a row without a valid token would give NaN
    return logits.masked_fill(~valid, torch.finfo(logits.dtype).min).softmax(dim=-1) * valid


def uniform_weights(mask: torch.Tensor) -> torch.Tensor:
    """(N, L) mask -> (N, L) float32 weights: 1 / number of valid tokens, 0 on padding.

    >>> uniform_weights(torch.tensor([[1, 1, 0], [0, 0, 0]])).tolist()
    [[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]
    """
    mask = mask.float()
    return mask / mask.sum(dim=-1, keepdim=True).clamp(min=1)  # a row of padding divides by 1


def token_interaction(
    text: torch.Tensor,
    video: torch.Tensor,
    text_mask: torch.Tensor,
    video_mask: torch.Tensor,
    text_weights: torch.Tensor,
    video_weights: torch.Tensor,
    padding: str = "zero",
) -> torch.Tensor:
    """Similarity of every text with every video, in [-1, 1].

    text (A,T,D), video (B,V,D); masks and weights (A,T), (B,V) -> (A,B).
    s = cosine of every word with every frame; text-to-video = sum_t w_t max_v s, video-to-text = sum_v w_v max_t s;
    the result is their mean. `padding` says what a padded token scores: "zero" counts it as cosine 0 (the published
    checkpoints were trained so), "exclude" keeps it out of the maximum (0 where no partner is valid).

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
    """Maximum along `dim`; 0 where every score is -inf."""
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
    """`token_interaction` in bounded memory, differentiable once: same arguments, same (A,B).

    Where several tokens match equally well the gradient goes to one of them; the plain formula shares it out.
    Under autocast the cosines have its dtype; sums are taken in float32 at least.
    """
    words = padding_filled(unit_vectors(text), text_mask, padding)
    frames = padding_filled(unit_vectors(video), video_mask, padding)
    device = text.device.type
    if torch.is_autocast_enabled(device):
        words, frames = (tokens.to(torch.get_autocast_dtype(device)) for tokens in (words, frames))
    best_frame, best_word = map(at_least_float32, MaxSim.apply(words, frames, block_bytes))
    # products and sums instead of matrix products, which autocast would round
    text_to_video = (best_frame * text_weights.unsqueeze(2)).sum(dim=1)
    video_to_text = (best_word * video_weights.T).sum(dim=1)
    return (text_to_video + video_to_text) / 2


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """float16 and bfloat16 as float32, other dtypes as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def unit_vectors(tokens: torch.Tensor) -> torch.Tensor:
    """Tokens (..., D) divided by their L2 norms; a zero vector stays zero."""
    # in float16 the epsilon that keeps the quotient finite would be 0
    return F.normalize(at_least_float32(tokens), dim=-1).to(tokens.dtype)


def padding_filled(tokens: torch.Tensor, mask: torch.Tensor, padding: str) -> torch.Tensor:
    """Unit tokens (N,L,D) whose padded ones need no mask any more.

    With "zero" they are zero vectors, whose cosine is 0 with everything; with "exclude" they repeat a valid token of
    their row, which changes no maximum. A row without a valid token is all zero vectors.
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
    """Best cosine of every word in every video, and of every frame in every text.

    Words (A,T,D) and frames (B,V,D), unit vectors -> (A,T,B), (A,V,B). Autograd of the formula keeps cosines (A,T,V,B)
    several times over; this keeps where the maxima are, in one or two bytes each.
    """

    @staticmethod
    def forward(ctx, words: torch.Tensor, frames: torch.Tensor, block_bytes: int) -> tuple[torch.Tensor, torch.Tensor]:
        best_frame = words.new_empty(*words.shape[:2], frames.shape[0])
        best_word = words.new_empty(words.shape[0], frames.shape[1], frames.shape[0])
        index_type = torch.uint8 if max(words.shape[1], frames.shape[1]) <= 256 else torch.int16
        frame_index = torch.empty_like(best_frame, dtype=index_type)
        word_index = torch.empty_like(best_word, dtype=index_type)
        for texts, videos, some_words, some_frames in blocks_of_pairs(words, frames, block_bytes):
            block = (texts, slice(None), videos)
            cosine = cosines(some_words, some_frames)
            if any(ctx.needs_input_grad):
                best_frame[block], frame_index[block] = cosine.max(dim=2)
                best_word[block], word_index[block] = cosine.max(dim=1)
            else:  # without indices the maximum costs a tenth
                best_frame[block], best_word[block] = cosine.amax(dim=2), cosine.amax(dim=1)
        ctx.save_for_backward(words, frames, frame_index, word_index)
        ctx.block_bytes = block_bytes
        return best_frame, best_word

    @staticmethod
    def backward(ctx, frame_gradient: torch.Tensor, word_gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        words, frames, frame_index, word_index = ctx.saved_tensors
        exact = torch.promote_types(words.dtype, torch.float32)  # in which the blocks are added up
        to_words, to_frames = torch.zeros_like(words, dtype=exact), torch.zeros_like(frames, dtype=exact)
        for texts, videos, some_words, some_frames in blocks_of_pairs(words, frames, ctx.block_bytes):
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
    """Unit words (A,T,D) and frames (V,B,D) -> (A,T,V,B) in their dtype, under autocast too.

    With the videos last every maximum reads whole rows at a time.
    """
    with torch.autocast(words.device.type, enabled=False):
        return (words.flatten(0, 1) @ frames.flatten(0, 1).T).view(*words.shape[:2], *frames.shape[:2])


def tokens_of_block(tokens: torch.Tensor, block_bytes: int) -> int:
    """How many words, and how many frames, make a square block of cosines of about `block_bytes`."""
    return math.isqrt(block_bytes // tokens.element_size())


def blocks_of_pairs(
    words: torch.Tensor, frames: torch.Tensor, block_bytes: int
) -> Iterator[tuple[slice, slice, torch.Tensor, torch.Tensor]]:
    """Which texts and which videos of (A,T,D) and (B,V,D), with their words (A,T,D) and frames (V,B,D), by blocks."""
    side = tokens_of_block(words, block_bytes)
    texts, videos = max(1, side // words.shape[1]), max(1, side // frames.shape[1])
    for first_video in range(0, frames.shape[0], videos):
        some_videos = slice(first_video, first_video + videos)
        some_frames = frames[some_videos].transpose(0, 1).contiguous()
        for first_text in range(0, words.shape[0], texts):
            some_texts = slice(first_text, first_text + texts)
            yield some_texts, some_videos, words[some_texts], some_frames


class PackedTokens(NamedTuple):
    """What scoring needs of N texts or videos: their M valid tokens alone, one row after the other.

    A row without a valid token has one zero vector of weight 0, whose cosine is 0 with everything.
    """

    vectors: torch.Tensor  # (M,D) unit vectors
    weights: torch.Tensor  # (M,) sum to 1 over each row
    counts: torch.Tensor  # (N,) tokens of each row, at least 1
    floor: torch.Tensor  # (N,) least maximum over a row: 0 where dropped padding counts as cosine 0, else -inf


def pack_tokens(
    tokens: torch.Tensor,
    mask: torch.Tensor,
    weight_network: Callable[[torch.Tensor], torch.Tensor] | None = None,
    padding: str = "zero",
    dtype: torch.dtype = torch.float32,
) -> PackedTokens:
    """Tokens (N,L,D) with mask (N,L), prepared for `packed_interaction` once; the vectors are kept in `dtype`.

    `weight_network` gives tokens (M,D) one logit each (M,1); without it all valid tokens of a row weigh the same.
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
    """`token_interaction` of all texts with all videos: (A,B) in float32 on the CPU.

    Cosines have the dtype of the packed vectors; maxima and sums that of the weights, float32.
    """
    similarity = torch.empty(len(texts.counts), len(videos.counts))
    side = tokens_of_block(texts.vectors, block_bytes)
    video_blocks = [
        (columns, videos.vectors[places], videos.weights[places], videos.floor[columns])
        for columns, places in rows_of_equal_count(videos.counts, side)
    ]
    for rows, places in rows_of_equal_count(texts.counts, side):
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


def rows_of_equal_count(counts: torch.Tensor, tokens: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Blocks of packed rows (N,) with equally many tokens L, and the places of those (L,N): about `tokens` together."""
    first_place = counts.cumsum(dim=0) - counts
    for count in counts.unique().tolist():
        for rows in (counts == count).nonzero().squeeze(1).split(max(1, tokens // count)):
            yield rows, first_place[rows] + torch.arange(count, device=counts.device).unsqueeze(1)
