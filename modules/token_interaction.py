"""Scores from the best matches between words and frames: token-wise interaction (ti) and its weighted form (wti).

From "Disentangled Representation Learning for Text-Video Retrieval" (Wang et al., 2022, arXiv:2203.07111), section 3.
Pure functions of tensors and masks: no collective, no training flag. A texts of T words, B videos of V frames, width D;
masks are 1 for real and 0 for padding.
"""

import torch
import torch.nn.functional as F
from torch import nn

WTI_ARCHITECTURES = (1, 2, 3)
WTI_PADDINGS = ("zero", "exclude")


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


def softmax_weights(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(N, L) logits -> (N, L) weights: softmax over valid tokens, 0 on padding, all 0 where nothing is valid.

    >>> softmax_weights(torch.zeros(2, 3), torch.tensor([[1, 1, 0], [0, 0, 0]])).tolist()
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
    cosine = torch.einsum("atd,bvd->abtv", F.normalize(text, dim=-1), F.normalize(video, dim=-1))
    valid_words, valid_frames = text_mask.bool(), video_mask.bool()
    valid = valid_words[:, None, :, None] & valid_frames[None, :, None, :]
    if padding == "zero":
        cosine = cosine * valid
        best_frame, best_word = cosine.amax(dim=3), cosine.amax(dim=2)  # (A,B,T), (A,B,V)
    elif padding == "exclude":
        cosine = cosine.masked_fill(~valid, -torch.inf)
        best_frame, best_word = finite_maximum(cosine, dim=3), finite_maximum(cosine, dim=2)
    else:
        raise ValueError(f"wti_padding {padding!r} is unknown; choose from {', '.join(WTI_PADDINGS)}")
    text_to_video = torch.einsum("abt,at->ab", best_frame, text_weights)
    video_to_text = torch.einsum("abv,bv->ab", best_word, video_weights)
    return (text_to_video + video_to_text) / 2


def finite_maximum(scores: torch.Tensor, dim: int) -> torch.Tensor:
    """Maximum along `dim`; 0 where every score is -inf."""
    maximum = scores.amax(dim=dim)
    return maximum.masked_fill(maximum == -torch.inf, 0.0)
