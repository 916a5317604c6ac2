"""CrossEn and channel decorrelation by hand and against slow loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.losses import CrossEn, channel_correlation, decorrelation_loss, standardize, token_correlation


def test_cross_entropy_by_hand():
    # rows: softmax of (ln 3, 0) at the diagonal is 3/4; of (0, 0) is 1/2
    logits = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    expected = -(math.log(3 / 4) + math.log(1 / 2)) / 2
    assert CrossEn()(logits).item() == pytest.approx(expected)


def test_cross_entropy_of_a_rank_starts_at_its_own_column():
    logits = torch.tensor([[0.0, math.log(2), 0.0, 0.0], [0.0, 0.0, math.log(6), 0.0]])
    expected = -(math.log(2 / 5) + math.log(6 / 9)) / 2
    assert CrossEn()(logits, first_column=1).item() == pytest.approx(expected)


def test_large_logits_stay_finite():
    logits = torch.tensor([[1e4, 0.0], [1e4, 0.0]], requires_grad=True)
    loss = CrossEn()(logits)
    loss.backward()
    assert loss.item() == pytest.approx(5e3)
    assert logits.grad.isfinite().all()


def test_decorrelation_loss_by_hand():
    correlation = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, -3.0], [0.0, 1.0, 3.0]])
    # diagonal: 0 + 1 + 4; others: 4 + 9 + 1
    assert decorrelation_loss(correlation, 0.11, 0.06).item() == pytest.approx(0.11 * 5 + 0.06 * 14)


def test_correlation_by_hand():
    first = torch.tensor([[1.0, 5.0], [3.0, 1.0]])  # standardised: +-1/sqrt(2), signs (-,+), (+,-)
    second = torch.tensor([[2.0, 4.0], [0.0, 4.0]])  # (+, 0), (-, 0): the second channel is constant
    expected = [[-0.5, 0.0], [0.5, 0.0]]
    assert channel_correlation(first, second).tolist() == [pytest.approx(row) for row in expected]


@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_pairs_correlate_nothing(rows):
    vectors = torch.ones(rows, 3, requires_grad=True)
    correlation = channel_correlation(vectors, vectors)
    decorrelation_loss(correlation, 1.0, 1.0).backward()
    assert correlation.tolist() == [[0.0] * 3] * 3
    assert vectors.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_constant_channels_stay_finite(dtype):
    vectors = torch.full((6, 4), 0.1, dtype=dtype, requires_grad=True)
    decorrelation_loss(channel_correlation(vectors, vectors), 1.0, 1.0).backward()
    assert vectors.grad.isfinite().all()


def test_standardize_is_numpys():
    vectors = np.random.default_rng(0).normal(3, 2, (7, 5))
    expected = (vectors - vectors.mean(0)) / vectors.std(0, ddof=1)
    np.testing.assert_allclose(standardize(torch.tensor(vectors)).numpy(), expected, atol=1e-5)


def slow_correlation(text, video, text_mask, video_mask, text_weights, video_weights, mode, padding) -> np.ndarray:
    """Matches found word by word, products summed pair by pair, in float64."""
    text, video = (x.double().numpy() / np.linalg.norm(x.double(), axis=-1, keepdims=True) for x in (text, video))
    correlations = []
    for side in (0, 1):
        tokens, partners = (text, video) if side == 0 else (video, text)
        masks = (text_mask, video_mask) if side == 0 else (video_mask, text_mask)
        weights = text_weights if side == 0 else video_weights
        chosen = []
        for g in range(len(text)):
            if not (text_mask[g].any() and video_mask[g].any()):
                continue
            for i in (i for i in range(tokens.shape[1]) if masks[0][g, i]):
                scores = [
                    tokens[g, i] @ partners[g, j] if masks[1][g, j] else (0.0 if padding == "zero" else -np.inf)
                    for j in range(partners.shape[1])
                ]
                weight = float(weights[g, i]) if mode == 3 else 1.0
                chosen.append((tokens[g, i], partners[g, int(np.argmax(scores))], weight))
        first, second = (np.array([pair[k] for pair in chosen]) for k in (0, 1))
        first, second = ((x - x.mean(0)) / x.std(0, ddof=1) for x in (first, second))
        total = sum(weight * np.outer(a, b) for a, b, (_, _, weight) in zip(first, second, chosen, strict=True))
        correlations.append(total / (len(text) if mode == 3 else len(chosen)))
    return (correlations[0] + correlations[1]) / 2


@settings(deadline=None, max_examples=40)
@given(mode=st.sampled_from([2, 3]), padding=st.sampled_from(["zero", "exclude"]), seed=st.integers(0, 10_000))
def test_matches_equal_the_slow_loop(mode, padding, seed):
    generator = torch.Generator().manual_seed(seed)
    text, video = torch.randn(5, 4, 3, generator=generator), torch.randn(5, 3, 3, generator=generator)
    text_mask = torch.randint(0, 2, (5, 4), generator=generator)
    video_mask = torch.randint(0, 2, (5, 3), generator=generator)
    text_mask[:3, :2], video_mask[:3, :2] = 1, 1  # enough matches for a variance
    weights = torch.rand(5, 4, generator=generator), torch.rand(5, 3, generator=generator)
    arguments = (text, video, text_mask, video_mask, *weights, mode, padding)
    np.testing.assert_allclose(token_correlation(*arguments).numpy(), slow_correlation(*arguments), atol=1e-4)


def test_random_matches_are_valid_pairs_of_their_own_video():
    """Mode 1: with one valid word and frame each there is nothing to draw, so the result is known."""
    generator = torch.Generator().manual_seed(3)
    text, video = torch.randn(6, 3, 4, generator=generator), torch.randn(6, 2, 4, generator=generator)
    text_mask = torch.tensor([[0, 1, 0]] * 5 + [[0, 0, 0]])  # the last pair has no word and takes no part
    video_mask = torch.tensor([[1, 0]] * 6)
    unused = torch.zeros(6, 3), torch.zeros(6, 2)
    result = token_correlation(text, video, text_mask, video_mask, *unused, 1)
    words = text[:5, 1] / text[:5, 1].norm(dim=-1, keepdim=True)
    frames = video[:5, 0] / video[:5, 0].norm(dim=-1, keepdim=True)
    words, frames = ((x - x.mean(0)) / x.std(0) for x in (words, frames))
    assert torch.allclose(result, words.T @ frames / 5, atol=1e-5)


def test_random_matches_are_drawn_anew():
    text, video = torch.randn(4, 6, 3), torch.randn(4, 6, 3)
    ones, unused = torch.ones(4, 6), torch.zeros(4, 6)
    torch.manual_seed(0)
    results = [token_correlation(text, video, ones, ones, unused, unused, 1) for _ in range(4)]
    assert len({result.sum().item() for result in results}) > 1
