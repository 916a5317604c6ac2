"""Evaluation: encode every text and every video of a split once, then score all pairs in blocks.

Texts and videos are sharded over the ranks in contiguous runs; each rank scores its own texts against all videos. The
head packs what is stored of a batch: valid tokens only for the token heads, features unchanged for the others.
"""

from collections.abc import Iterable

import torch

from modules.distributed import all_gather_uneven, gather_rows
from modules.heads import Features
from modules.modeling import CLIP4Clip, drop_pair_axis
from modules.module_clip import trim_padding
from modules.token_interaction import PackedTokens

SIMILARITY_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@torch.no_grad()
def encode_texts(
    model: CLIP4Clip,
    batches: Iterable[tuple[torch.Tensor, ...]],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Features | PackedTokens:
    """Encode and pack batches of (input_ids, input_mask, segment_ids), each (A,1,T); tokens are stored in `dtype`."""
    packed = []
    for input_ids, input_mask, segment_ids in batches:
        input_ids, input_mask = trim_padding(input_ids).to(device), input_mask.to(device)
        vectors = model.get_sequence_output(input_ids, segment_ids, input_mask)
        packed.append(model.head.pack_texts(model, vectors, drop_pair_axis(input_mask), dtype))
    if packed:
        return concatenate(packed)
    length = model.config.max_words
    tokens = length if model.head.encodes_tokens else 1
    return model.head.pack_texts(model, *empty_features(model, tokens, length, device), dtype)


@torch.no_grad()
def encode_videos(
    model: CLIP4Clip,
    batches: Iterable[tuple[torch.Tensor, ...]],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Features | PackedTokens:
    """Encode, aggregate and pack batches of (video, video_mask), (B,1,V,1,3,H,W) and (B,1,V); `dtype` as for texts."""
    packed = []
    for video, video_mask in batches:
        video_mask = drop_pair_axis(video_mask.to(device))
        frames = model.aggregate_frames(model.get_visual_output(video.to(device), video_mask), video_mask)
        packed.append(model.head.pack_videos(model, frames, video_mask, dtype))
    if packed:
        return concatenate(packed)
    length = model.config.max_frames
    return model.head.pack_videos(model, *empty_features(model, length, length, device), dtype)


def empty_features(model: CLIP4Clip, tokens: int, length: int, device: torch.device) -> Features:
    """Return the features of a rank whose share of the split is empty: (0,`tokens`,D), masks (0,`length`)."""
    vectors = torch.empty((0, tokens, model.clip.embed_dim), device=device)
    return Features(vectors, torch.empty((0, length), dtype=torch.int64, device=device))


def concatenate(packed: list[Features] | list[PackedTokens]) -> Features | PackedTokens:
    """Concatenate the rows of packed batches."""
    return type(packed[0])(*map(torch.cat, zip(*packed, strict=True)))


def gather_packed(packed: Features | PackedTokens) -> Features | PackedTokens:
    """Gather the rows of all ranks."""
    return type(packed)(*map(all_gather_uneven, packed))


@torch.no_grad()
def score_in_blocks(model: CLIP4Clip, texts: Features | PackedTokens, videos: Features | PackedTokens) -> torch.Tensor:
    """Score every packed text with every packed video: (A,B) in float32 on the CPU."""
    return model.head.score_packed(model, texts, videos)


def similarity_of_split(
    model: CLIP4Clip,
    text_batches: Iterable[tuple[torch.Tensor, ...]],
    video_batches: Iterable[tuple[torch.Tensor, ...]],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor | None:
    """Return the similarity (A,B) of a whole split on rank 0, None on the others; the batches are this rank's shard.

    `dtype` is that of the token heads' vectors and cosines; other heads compute in float32.

    Raises: ValueError if the model is in training mode, which scales and drops out.
    """
    if model.training:
        raise ValueError("the model is in training mode; call model.eval() before scoring a split")
    texts = encode_texts(model, text_batches, device, dtype)
    videos = gather_packed(encode_videos(model, video_batches, device, dtype))
    similarity = gather_rows(score_in_blocks(model, texts, videos).to(device))
    return None if similarity is None else similarity.cpu()
