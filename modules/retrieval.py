"""Evaluation: encode every text and every video of a split once, then score all pairs in blocks.

Texts and videos are sharded over the ranks in contiguous runs; each rank scores its own texts against all videos.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from modules.distributed import all_gather_uneven
from modules.modeling import CLIP4Clip, as_rows

FLOATS_PER_BLOCK = 1 << 26  # scored at once: a quarter of a gigabyte


@dataclass
class Features:
    """Features of texts (A,1,D) or (A,T,D), or aggregated frames (B,V,D), with their mask (A,T) or (B,V)."""

    vectors: torch.Tensor
    mask: torch.Tensor


@torch.no_grad()
def encode_texts(model: CLIP4Clip, batches: Iterable[tuple[torch.Tensor, ...]], device: torch.device) -> Features:
    """Encode batches of (input_ids, input_mask, segment_ids), each (A,1,T)."""
    length = model.config.max_words
    vectors, masks = [], []
    for input_ids, input_mask, segment_ids in batches:
        input_ids, input_mask = input_ids.to(device), input_mask.to(device)
        vectors.append(model.get_sequence_output(input_ids, segment_ids, input_mask))
        masks.append(as_rows(input_mask))
    tokens = length if model.is_token_head else 1
    return Features(
        concatenate(vectors, (tokens, model.clip.embed_dim), torch.float32, device),
        concatenate(masks, (length,), torch.int64, device),
    )


@torch.no_grad()
def encode_videos(model: CLIP4Clip, batches: Iterable[tuple[torch.Tensor, ...]], device: torch.device) -> Features:
    """Encode and aggregate batches of (video, video_mask), (B,1,V,1,3,H,W) and (B,1,V)."""
    length = model.config.max_frames
    vectors, masks = [], []
    for video, video_mask in batches:
        video_mask = as_rows(video_mask.to(device))
        frames = model.get_visual_output(video.to(device), video_mask)
        vectors.append(model.aggregate_frames(frames, video_mask))
        masks.append(video_mask)
    return Features(
        concatenate(vectors, (length, model.clip.embed_dim), torch.float32, device),
        concatenate(masks, (length,), torch.int64, device),
    )


def concatenate(parts: list[torch.Tensor], row_shape: tuple[int, ...], dtype, device) -> torch.Tensor:
    """Rows of all parts; an empty tensor of rows of that shape where a rank has no part of the split."""
    return torch.cat(parts) if parts else torch.empty((0, *row_shape), dtype=dtype, device=device)


@torch.no_grad()
def score_in_blocks(model: CLIP4Clip, texts: Features, videos: Features) -> torch.Tensor:
    """Similarity (A,B) of every text with every video, in float32 on the CPU."""
    similarity = torch.empty(texts.vectors.shape[0], videos.vectors.shape[0])
    pairs = max(1, FLOATS_PER_BLOCK // model.floats_per_pair)
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
) -> torch.Tensor:
    """Similarity (A,B) of a whole split on every rank; the batches are this rank's contiguous shard of it.

    The model must be in evaluation mode; ValueError otherwise, because training mode scales and drops out.
    """
    if model.training:
        raise ValueError("the model is in training mode; call model.eval() before scoring a split")
    texts = encode_texts(model, text_batches, device)
    videos = encode_videos(model, video_batches, device)
    videos = Features(all_gather_uneven(videos.vectors), all_gather_uneven(videos.mask))
    rows = score_in_blocks(model, texts, videos)
    return all_gather_uneven(rows.to(device)).cpu()
