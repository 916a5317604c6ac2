"""The contrastive loss, and channel decorrelation regularization (CDCR) as pure functions of features and masks.

CDCR is from "Disentangled Representation Learning for Text-Video Retrieval" (Wang et al., 2022, arXiv:2203.07111),
section 3.3.
"""

import torch
import torch.nn.functional as F
from torch import nn

CDCR_MODES = (0, 1, 2, 3)  # off, one random token pair per video, MaxSim matches, weighted MaxSim matches
SMALLEST_VARIANCE = 1e-8  # keeps constant channels finite; channels of unit vectors have a variance of about 1 / D


class CrossEn(nn.Module):
    """Mean cross entropy of logits (N,G), whose true entries are at column `first_column` + row.

    >>> CrossEn()(torch.zeros(4, 4)).item() == torch.tensor(4.0).log().item()
    True
    """

    def forward(self, logits: torch.Tensor, first_column: int = 0) -> torch.Tensor:
        rows = torch.arange(logits.shape[0], device=logits.device)
        return F.cross_entropy(logits, rows + first_column)


def one_random_token(mask: torch.Tensor) -> torch.Tensor:
    """Draw one valid token of each row uniformly, as a mask (N,L) of (N,L); rows without a valid token stay 0."""
    chances = torch.rand(mask.shape, device=mask.device).masked_fill(mask == 0, -1.0)
    return F.one_hot(chances.argmax(dim=1), mask.shape[1]) * mask


def decorrelation_loss(correlation: torch.Tensor, alpha1: float, alpha2: float) -> torch.Tensor:
    """Return alpha1 * sum of (diagonal - 1)^2 + alpha2 * sum of off-diagonal^2 of a channel correlation (D,D).

    >>> decorrelation_loss(torch.tensor([[0.5, 2.0], [0.0, 1.0]]), 1.0, 0.5).item()  # 0.25 + 0.5 * 4
    2.25
    """
    squares = correlation.square()
    on_diagonal = (correlation.diagonal() - 1).square().sum()
    return alpha1 * on_diagonal + alpha2 * (squares.sum() - squares.diagonal().sum())


def channel_correlation(
    first: torch.Tensor, second: torch.Tensor, weights: torch.Tensor | None = None, count: int | None = None
) -> torch.Tensor:
    """Return the correlation (D,D) between the channels of N pairs of vectors (N,D).

    Both sides are standardised per channel over the pairs (unbiased); the products are weighted by `weights` (N,) and
    divided by `count`, by default N. With fewer than two pairs the result is 0.
    """
    first, second = standardize(first), standardize(second)
    if weights is not None:
        first = first * weights.unsqueeze(-1)
    return first.T @ second / max(1, count or first.shape[0])


def standardize(vectors: torch.Tensor) -> torch.Tensor:
    """Scale the channels of vectors (N,D) to mean 0 and unbiased variance 1; a constant channel becomes 0."""
    vectors = vectors.float()  # variances of unit vectors underflow in half precision
    centred = vectors - vectors.sum(dim=0) / max(1, vectors.shape[0])
    variance = centred.square().sum(dim=0) / max(1, vectors.shape[0] - 1)
    return centred / variance.clamp(min=SMALLEST_VARIANCE).sqrt()


def token_correlation(
    text: torch.Tensor,
    video: torch.Tensor,
    text_mask: torch.Tensor,
    video_mask: torch.Tensor,
    text_weights: torch.Tensor,
    video_weights: torch.Tensor,
    mode: int,
    padding: str = "zero",
) -> torch.Tensor:
    """Return the channel correlation (D,D) between matched words and frames of the true pairs.

    text (G,T,D), video (G,V,D), masks and weights (G,T), (G,V). Mode 1 matches one random valid word of a pair with one
    random valid frame; mode 2 every valid word with its MaxSim frame and every valid frame with its MaxSim word; mode 3
    weights the matches of mode 2 by their tokens' weights. A pair without a valid word or frame is left out. `padding`
    is the score's: with "zero" a padded token, at cosine 0, may be the match, as in the published runs.
    """
    text, video = F.normalize(text, dim=-1), F.normalize(video, dim=-1)
    complete = text_mask.bool().any(dim=1) & video_mask.bool().any(dim=1)
    words, frames = text_mask.bool() & complete[:, None], video_mask.bool() & complete[:, None]
    if mode == 1:
        rows = complete.nonzero().squeeze(1)
        word, frame = (mask[rows].float().multinomial(1).squeeze(1) if len(rows) else rows for mask in (words, frames))
        return channel_correlation(text[rows, word], video[rows, frame])
    valid = words[:, :, None] & frames[:, None, :]
    cosine = torch.einsum("gtd,gvd->gtv", text, video).masked_fill(~valid, 0.0 if padding == "zero" else -torch.inf)
    correlations = []
    for tokens, partners, best, mask, weights in (
        (text, video, cosine.argmax(dim=2), words, text_weights),
        (video, text, cosine.argmax(dim=1), frames, video_weights),
    ):
        matches = partners.gather(1, best.unsqueeze(-1).expand_as(tokens))
        if mode == 3:
            correlation = channel_correlation(tokens[mask], matches[mask], weights[mask], count=len(tokens))
        else:
            correlation = channel_correlation(tokens[mask], matches[mask])
        correlations.append(correlation)
    return (correlations[0] + correlations[1]) / 2
