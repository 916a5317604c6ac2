"""The heads: how a text is compared with a video. One class for each family, one line of `HEADS` for each name.

A head holds no parameters: its layers are attributes of the model (a `CLIP4Clip`) under CLIP4Clip's and DRL's names, so
that checkpoint keys do not depend on this file. meanP, seqLSTM, seqTransf and tightTransf are CLIP4Clip's (Luo et al.,
2021, arXiv:2104.08860); ti, wti and xti are DRL's (Wang et al., 2022, arXiv:2203.07111).

Shapes: A texts of T words, B videos of V frames, joint width D. Text features are sentence vectors (A,1,D), or tokens
(A,T,D) for a head that `encodes_tokens`; frames (B,V,D) are aggregated; masks are (A,T) and (B,V).
"""

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from modules.explanation import Explanation, explain
from modules.losses import channel_correlation, one_random_token, token_correlation
from modules.module_cross import CrossModel
from modules.token_interaction import (
    PackedTokens,
    masked_softmax,
    pack_tokens,
    packed_interaction,
    uniform_weights,
    unit_vectors,
    weight_mlp,
    weighted_sums,
)

BLOCK_BYTES = 1 << 28  # memory for the pairs that pooled heads and cross encoders score at once
AGGREGATION_LAYERS = {"seqTransf": "transformerClip", "seqLSTM": "lstm_visual"}  # attributes of the model


class Features(NamedTuple):
    """Sentence vectors (A,1,D) with masks (A,T), or aggregated frames (B,V,D) with masks (B,V)."""

    vectors: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True)
class Head(ABC):
    """Base of all heads; a family implements `similarity` and overrides the defaults that do not fit it."""

    name: str
    aggregation: str | None = None  # temporal aggregation that the head fixes; None if --agg_module selects it
    # published training over several ranks: "all" negatives, "exact" gradients too, or "local" negatives only
    gather: str = "all"
    is_scaled_in_training: bool = True  # exp(logit_scale) multiplies the similarity
    is_scaled_in_evaluation: bool = False

    encodes_tokens: ClassVar[bool] = False  # texts as tokens (A,T,D), so that single words can be explained
    reads_pairs: ClassVar[bool] = False  # a network reads each pair: slow, and videos cannot serve as queries
    supports_cdcr: ClassVar[bool] = True
    layers: ClassVar[tuple[str, ...]] = ()  # attributes of the model that only this family has

    def add_layers(self, model: nn.Module, positions: int) -> None:
        """Add the layers of the temporal aggregation and of the head to `model`.

        Their order is that of random numbers and of the parameters in optimizer files.
        """
        model.add_aggregation_layers(positions)

    def positions_needed(self, max_frames: int, aggregation: str) -> int:
        """Return the number of learned positions that a video of `max_frames` frames takes."""
        return max_frames if aggregation == "seqTransf" else 0

    @abstractmethod
    def similarity(self, model, texts, frames, text_mask, video_mask) -> torch.Tensor:
        """Return the similarity (A,B) of all texts with all videos, before exp(logit_scale)."""

    def floats_per_pair(self, model) -> int:
        """Return about how many floats scoring one text with one video holds at once."""
        return 1

    def cdcr_masks(self, text_mask, video_mask, mode: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the masks of the tokens that CDCR decorrelates, drawn before the gather so that all ranks agree."""
        return text_mask, video_mask

    def channel_correlation(self, model, texts, frames, text_mask, video_mask) -> torch.Tensor:
        """Return CDCR's correlation (D,D) between the channels of the true pairs, whose number is A = B."""
        return channel_correlation(*pooled_vectors(texts, frames, video_mask))

    def pack_texts(self, model, texts, mask, dtype: torch.dtype = torch.float32) -> Features | PackedTokens:
        """Return the features of a batch of texts as an evaluation stores them; `dtype` applies to tokens only."""
        return Features(texts, mask)

    def pack_videos(self, model, frames, mask, dtype: torch.dtype = torch.float32) -> Features | PackedTokens:
        """Return the features of a batch of videos as an evaluation stores them; `dtype` applies to tokens only."""
        return Features(frames, mask)

    def score_packed(self, model, texts: Features | PackedTokens, videos: Features | PackedTokens) -> torch.Tensor:
        """Score all packed texts with all packed videos in blocks of bounded memory: (A,B) float32 on the CPU."""
        similarity = torch.empty(texts.vectors.shape[0], videos.vectors.shape[0])
        pairs = max(1, BLOCK_BYTES // (4 * self.floats_per_pair(model)))
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

    def index_texts(self, model, texts, mask) -> tuple[PackedTokens, torch.Tensor]:
        """Return the vectors that a search compares for N texts, and unit vectors (N,D) for selecting candidates."""
        sentences = texts.squeeze(1)
        unit = unit_vectors(sentences)
        weights = torch.ones(len(sentences), device=sentences.device)
        floor = torch.full_like(weights, -torch.inf)
        return PackedTokens(sentences if self.reads_pairs else unit, weights, weights.long(), floor), unit

    def index_videos(self, model, frames, mask) -> tuple[PackedTokens, torch.Tensor]:
        """Return the vectors that an index stores for N videos, and unit vectors (N,D) for selecting candidates."""
        valid = mask.bool()
        vectors, counts = frames[valid], valid.sum(dim=1)
        vectors = vectors if self.reads_pairs else unit_vectors(vectors)
        floor = torch.full(counts.shape, -torch.inf, device=counts.device)
        _, pooled = pooled_vectors(frames[:, :1], frames, mask)
        return PackedTokens(vectors, uniform_weights(mask)[valid], counts, floor), pooled

    def explain(self, text: PackedTokens, video: PackedTokens) -> Explanation:
        """Return the parts of the score of one packed text with one packed video.

        Raises ValueError if the head does not compare words with frames.
        """
        check_explainable(self.name)
        return explain(text.vectors, text.weights, video.vectors, video.weights, text.floor.item(), video.floor.item())

    def fitting_flags(self, weights: Collection[str], aggregation: str) -> str:
        """Return the flags that select this head, with which it fits a checkpoint's keys."""
        return f"{self.name} --agg_module {aggregation}" if self.aggregation is None else self.name


@dataclass(frozen=True)
class PooledHead(Head):
    """Cosine of the sentence vector and the mean of the frames, scaled in evaluation too (CLIP4Clip's loose types)."""

    is_scaled_in_evaluation: bool = True

    def similarity(self, model, texts, frames, text_mask, video_mask) -> torch.Tensor:
        text_vectors, video_vectors = pooled_vectors(texts, frames, video_mask)
        return text_vectors @ video_vectors.T


class CrossHead(Head):
    """A cross encoder reads [sentence vector; frames] of each pair (CLIP4Clip's tight type, DRL's XTI)."""

    reads_pairs = True
    supports_cdcr = False
    layers = ("cross", "similarity_dense")

    def add_layers(self, model: nn.Module, positions: int) -> None:
        width = model.clip.embed_dim
        model.cross = CrossModel(width, model.config.cross_num_hidden_layers, positions)
        model.similarity_dense = nn.Linear(width, 1)
        super().add_layers(model, positions)

    def positions_needed(self, max_frames: int, aggregation: str) -> int:
        return 1 + max_frames  # the sentence vector takes the first position

    def similarity(self, model, texts, frames, text_mask, video_mask) -> torch.Tensor:
        text_count, video_count = texts.shape[0], frames.shape[0]
        pairs = torch.cat(
            [
                texts.unsqueeze(1).expand(-1, video_count, -1, -1),
                frames.unsqueeze(0).expand(text_count, -1, -1, -1),
            ],
            dim=2,
        ).flatten(0, 1)
        pair_mask = F.pad(video_mask, (1, 0), value=1).repeat(text_count, 1)  # the sentence vector is always valid
        return model.similarity_dense(model.cross(pairs, pair_mask)).view(text_count, video_count)

    def floats_per_pair(self, model) -> int:
        # queries, keys, values, the four times wider hidden layer, and the residual stream around them
        return 12 * (1 + model.config.max_frames) * model.clip.embed_dim


@dataclass(frozen=True)
class TokenHead(Head):
    """Token-wise interaction of all words with all frames (DRL's TI), weighted by two networks (WTI) or uniformly."""

    has_weight_networks: bool = False

    encodes_tokens = True

    @property
    def layers(self) -> tuple[str, ...]:
        return ("text_weight_fc", "video_weight_fc") if self.has_weight_networks else ()

    def add_layers(self, model: nn.Module, positions: int) -> None:
        super().add_layers(model, positions)
        for layer in self.layers:
            setattr(model, layer, weight_mlp(model.clip.embed_dim, model.config.wti_arch))

    def similarity(self, model, texts, frames, text_mask, video_mask) -> torch.Tensor:
        return model.wti_interaction(texts, frames, text_mask, video_mask)

    def token_weights(self, model, texts, frames, text_mask, video_mask) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weights of words (A,T) and frames (B,V), from the features before normalisation."""
        if not self.has_weight_networks:
            return uniform_weights(text_mask), uniform_weights(video_mask)
        return (
            masked_softmax(model.text_weight_fc(texts).squeeze(-1), text_mask),
            masked_softmax(model.video_weight_fc(frames).squeeze(-1), video_mask),
        )

    def cdcr_masks(self, text_mask, video_mask, mode: int) -> tuple[torch.Tensor, torch.Tensor]:
        return (one_random_token(text_mask), one_random_token(video_mask)) if mode == 1 else (text_mask, video_mask)

    def channel_correlation(self, model, texts, frames, text_mask, video_mask) -> torch.Tensor:
        weights = self.token_weights(model, texts, frames, text_mask, video_mask)
        config = model.config
        return token_correlation(texts, frames, text_mask, video_mask, *weights, config.cdcr, config.wti_padding)

    def pack_texts(self, model, texts, mask, dtype: torch.dtype = torch.float32) -> PackedTokens:
        network = model.text_weight_fc if self.has_weight_networks else None
        return pack_tokens(texts, mask, network, model.config.wti_padding, dtype)

    def pack_videos(self, model, frames, mask, dtype: torch.dtype = torch.float32) -> PackedTokens:
        network = model.video_weight_fc if self.has_weight_networks else None
        return pack_tokens(frames, mask, network, model.config.wti_padding, dtype)

    def score_packed(self, model, texts: PackedTokens, videos: PackedTokens) -> torch.Tensor:
        return packed_interaction(texts, videos)

    def index_texts(self, model, texts, mask) -> tuple[PackedTokens, torch.Tensor]:
        packed = self.pack_texts(model, texts, mask)
        return packed, unit_vectors(weighted_sums(packed))

    def index_videos(self, model, frames, mask) -> tuple[PackedTokens, torch.Tensor]:
        packed = self.pack_videos(model, frames, mask)
        return packed, unit_vectors(weighted_sums(packed))

    def fitting_flags(self, weights: Collection[str], aggregation: str) -> str:
        flags = super().fitting_flags(weights, aggregation)
        if not self.has_weight_networks:
            return flags
        architectures = {1: "text_weight_fc.weight", 3: "text_weight_fc.4.weight"}
        arch = next((arch for arch, key in architectures.items() if key in weights), 2)
        return f"{flags} --wti_arch {arch}"


HEADS: dict[str, Head] = {
    head.name: head
    for head in (
        PooledHead("meanP", aggregation="none"),
        PooledHead("seqLSTM", aggregation="seqLSTM"),
        PooledHead("seqTransf", aggregation="seqTransf"),
        CrossHead("tightTransf", aggregation="none", gather="local", is_scaled_in_training=False),
        CrossHead("xti", gather="exact"),
        TokenHead("ti"),
        TokenHead("wti", has_weight_networks=True),
    )
}


def pooled_vectors(texts, frames, video_mask) -> tuple[torch.Tensor, torch.Tensor]:
    """Return unit vectors of sentences, (A,1,D) -> (A,D), and of masked means of unit frames, (B,V,D) -> (B,D)."""
    mask = video_mask.unsqueeze(-1).float()
    # a video without a valid frame divides by 1 and keeps a zero vector
    mean = (F.normalize(frames, dim=-1) * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    return F.normalize(texts.squeeze(1), dim=-1), F.normalize(mean, dim=-1)


def check_explainable(sim_header: str) -> None:
    """Raise ValueError if the head of this name does not compare words with frames."""
    explainable = [name for name, head in HEADS.items() if head.encodes_tokens]
    if sim_header not in explainable:
        raise ValueError(
            f"--sim_header {sim_header} does not compare words with frames; choose from {', '.join(explainable)}"
        )


def head_key_prefixes() -> tuple[str, ...]:
    """Return the prefixes of the checkpoint keys that only some heads or temporal aggregations have."""
    layers = [layer for head in HEADS.values() for layer in head.layers]
    return tuple(f"{layer}." for layer in dict.fromkeys([*AGGREGATION_LAYERS.values(), *layers]))


def fitting_heads(weights: Collection[str]) -> list[str]:
    """Return, for each choice, the values of --sim_header and its flags that make a whole model of a checkpoint's keys.

    Keys do not determine everything: meanP and ti have no layers of their own, tightTransf and xti the same ones.
    """
    names = {key.split(".")[0] for key in weights}
    aggregation = "none"
    for choice, layer in AGGREGATION_LAYERS.items():
        if layer in names:
            aggregation = choice
    trained = [head for head in HEADS.values() if names.intersection(head.layers)]
    return [
        head.fitting_flags(weights, aggregation)
        for head in trained or [head for head in HEADS.values() if not head.layers]
        if head.aggregation in (None, aggregation)
    ]
