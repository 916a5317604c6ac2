"""Transformers over features: `TransformerClip` over the frames of a video, `CrossModel` over a text-video pair.

Layout and names are those of CLIP4Clip's checkpoints; the blocks are CLIP's with a LayerNorm epsilon of 1e-12.
"""

import torch
from torch import nn

from modules.module_clip import LayerNorm, QuickGELU, Transformer, attention_heads

LAYER_NORM_EPS = 1e-12
MASKED_SCORE = -1e6  # finite, so that a row of padding stays finite; exceeds float16's range


def additive_padding_mask(mask: torch.Tensor) -> torch.Tensor:
    """Return the float32 mask (N, 1, 1, L) to add to attention scores, from (N, L) with 1 for valid, 0 for padding."""
    return ((1.0 - mask.float()) * MASKED_SCORE)[:, None, None, :]


class TransformerClip(Transformer):
    """Blocks that attend to the valid positions only."""

    def __init__(self, width: int, layers: int):
        super().__init__(width, layers, attention_heads(width), layer_norm_eps=LAYER_NORM_EPS)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        """Transform features (N, L, width), mask (N, L); with `positions` (N,) return only those, (N, 1, width)."""
        return super().forward(x, additive_padding_mask(mask), positions=positions)


class CrossEmbeddings(nn.Module):
    """Add learned positions, then drop out."""

    def __init__(self, width: int, positions: int, dropout: float):
        super().__init__()
        self.position_embeddings = nn.Embedding(positions, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(x + self.position_embeddings.weight[: x.shape[1]])


class CrossPooler(nn.Module):
    """Project the vector of the first position."""

    def __init__(self, width: int):
        super().__init__()
        self.ln_pool = LayerNorm(width, eps=LAYER_NORM_EPS)
        self.dense = nn.Linear(width, width)
        self.activation = QuickGELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.dense(self.ln_pool(x)[:, 0]))


class CrossModel(nn.Module):
    """Cross encoder over [sentence vector; frames]: features (N, 1+V, width) and their mask (N, 1+V) -> (N, width)."""

    def __init__(self, width: int, layers: int, positions: int, dropout: float = 0.1):
        super().__init__()
        self.embeddings = CrossEmbeddings(width, positions, dropout)
        self.transformer = TransformerClip(width, layers)
        self.pooler = CrossPooler(width)

    def forward(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        first = torch.zeros(features.shape[0], dtype=torch.long, device=features.device)
        return self.pooler(self.transformer(self.embeddings(features), mask, first))
