"""Evaluation: encode every text and every video of a split once, then score all pairs in blocks.

Texts and videos are sharded over the ranks in contiguous runs; each rank scores its own texts against all videos. For
the token heads no more than the valid tokens of the split is ever held.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from modules.distributed import all_gather_uneven, gather_rows
from modules.modeling import CLIP4Clip, as_rows
from modules.module_clip import trim_padding
from modules.token_interaction import PackedTokens, pack_tokens, packed_interaction

SIMILARITY_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BLOCK_BYTES = 1 << 28  # of what a cross encoder or the pooled heads hold of the pairs that they score at once


class Features(NamedTuple):
    """Sentence vectors (A,1,D) with masks (A,T), or aggregated frames (B,V,D) with masks (B,V)."""

    vectors: torch.Tensor
    mask: torch.Tensor


@torch.no_grad()
def encode_texts(
    model: CLIP4Clip,
    batches: Iterable[tuple[torch.Tensor, ...]],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Features | PackedTokens:
    """Encode batches of (input_ids, input_mask, segment_ids), each (A,1,T).

    The token heads give the valid words alone, in `dtype`; other heads their features as they are.
    """
    keep = keeper(model, "text_weight_fc", dtype)
    parts = []
    for input_ids, input_mask, segment_ids in batches:
        input_ids, input_mask = trim_padding(input_ids).to(device), input_mask.to(device)
        parts.append(keep(model.get_sequence_output(input_ids, segment_ids, input_mask), as_rows(input_mask)))
    length = model.config.max_words
    return joined(parts) if parts else keep(*no_rows(model, length if model.is_token_head else 1, length, device))


@torch.no_grad()
def encode_videos(
    model: CLIP4Clip,
    batches: Iterable[tuple[torch.Tensor, ...]],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Features | PackedTokens:
    """Encode and aggregate batches of (video, video_mask), (B,1,V,1,3,H,W) and (B,1,V); kept as texts are."""
    keep = keeper(model, "video_weight_fc", dtype)
    parts = []
    for video, video_mask in batches:
        video_mask = as_rows(video_mask.to(device))
        frames = model.get_visual_output(video.to(device), video_mask)
        parts.append(keep(model.aggregate_frames(frames, video_mask), video_mask))
    length = model.config.max_frames
    return joined(parts) if parts else keep(*no_rows(model, length, length, device))


def keeper(model: CLIP4Clip, weight_network: str, dtype: torch.dtype) -> Callable[..., Features | PackedTokens]:
    """What makes of a batch's vectors and mask that which is kept: the token heads keep valid tokens alone."""
    if not model.is_token_head:
        return Features
    network = getattr(model, weight_network, None)  # ti has none: its tokens weigh the same
    return lambda vectors, mask: pack_tokens(vectors, mask, network, model.config.wti_padding, dtype)


def no_rows(model: CLIP4Clip, tokens: int, length: int, device: torch.device) -> Features:
    """Features of a rank that has no part of the split."""
    vectors = torch.empty((0, tokens, model.clip.embed_dim), device=device)
    return Features(vectors, torch.empty((0, length), dtype=torch.int64, device=device))


def joined(parts: list[Features] | list[PackedTokens]) -> Features | PackedTokens:
    """The rows of all parts."""
    return type(parts[0])(*map(torch.cat, zip(*parts, strict=True)))


def gathered(features: Features | PackedTokens) -> Features | PackedTokens:
    """The rows of all ranks."""
    return type(features)(*map(all_gather_uneven, features))


@torch.no_grad()
def score_in_blocks(model: CLIP4Clip, texts: Features | PackedTokens, videos: Features | PackedTokens) -> torch.Tensor:
    """Similarity (A,B) of every text with every video, in float32 on the CPU."""
    if model.is_token_head:
        return packed_interaction(texts, videos)
    similarity = torch.empty(texts.vectors.shape[0], videos.vectors.shape[0])
    pairs = max(1, BLOCK_BYTES // (4 * model.floats_per_pair))
    columns = min(pairs, max(1, videos.vectors.shape[0]))
    rows = pairs // columns
    for first_text in range(0, similarity.shape[0], rows):
        some_texts = slice(first_text, first_text + rows)
        for first_video in range(0, similarity.shape[1], columns):
            some_videos = slice(first_video, first_video + columns)
            similarity[some_texts, some_videos] = model.score(
                texts.vectors[some_texts],
                videos.vectors[some_videos],
                texts.mask[some_texts],
                videos.mask[some_videos],
            ).cpu()
    return similarity


def similarity_of_split(
    model: CLIP4Clip,
    text_batches: Iterable[tuple[torch.Tensor, ...]],
    video_batches: Iterable[tuple[torch.Tensor, ...]],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor | None:
    """Similarity (A,B) of a whole split on rank 0, None on the others; the batches are this rank's shard of it.

    `dtype` is that of the token heads' vectors and cosines; the other heads keep theirs.
    The model must be in evaluation mode; ValueError otherwise, because training mode scales and drops out.
    """
    if model.training:
        raise ValueError("the model is in training mode; call model.eval() before scoring a split")
    texts = encode_texts(model, text_batches, device, dtype)
    videos = gathered(encode_videos(model, video_batches, device, dtype))
    rows = score_in_blocks(model, texts, videos)
    similarity = gather_rows(rows.to(device))
    return None if similarity is None else similarity.cpu()
