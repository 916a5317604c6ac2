"""ti and wti against hand-worked values and a slow loop over single words and frames."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from modules.token_interaction import softmax_weights, token_interaction, uniform_weights, weight_mlp


def slow_interaction(text, video, text_mask, video_mask, text_weights, video_weights, padding) -> np.ndarray:
    """The same score word by word and frame by frame, in float64."""
    text, video, text_weights, video_weights = (
        tensor.double().numpy() for tensor in (text, video, text_weights, video_weights)
    )
    result = np.zeros((len(text), len(video)))
    for a, b in itertools.product(range(len(text)), range(len(video))):
        cosines = {}
        for t, v in itertools.product(range(text.shape[1]), range(video.shape[1])):
            if text_mask[a, t] and video_mask[b, v]:
                norms = np.linalg.norm(text[a, t]) * np.linalg.norm(video[b, v])
                cosines[t, v] = text[a, t] @ video[b, v] / norms
            elif padding == "zero":
                cosines[t, v] = 0.0
        for weights, axis in ((text_weights[a], 0), (video_weights[b], 1)):
            for token, weight in enumerate(weights):
                best = max((c for pair, c in cosines.items() if pair[axis] == token), default=0.0)
                result[a, b] += weight * best / 2
    return result


@settings(deadline=None, max_examples=60)
@given(
    texts=st.integers(1, 3), videos=st.integers(1, 3), words=st.integers(1, 4), frames=st.integers(1, 4),
    padding=st.sampled_from(["zero", "exclude"]), seed=st.integers(0, 10_000),
)  # fmt: skip
def test_equals_the_slow_loop(texts, videos, words, frames, padding, seed):
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(texts, words, 5, generator=generator)
    video = torch.randn(videos, frames, 5, generator=generator)
    text_mask = torch.randint(0, 2, (texts, words), generator=generator)  # holes and empty rows too
    video_mask = torch.randint(0, 2, (videos, frames), generator=generator)
    text_weights = softmax_weights(torch.randn(texts, words, generator=generator), text_mask)
    video_weights = softmax_weights(torch.randn(videos, frames, generator=generator), video_mask)
    arguments = (text, video, text_mask, video_mask, text_weights, video_weights, padding)
    np.testing.assert_allclose(token_interaction(*arguments).numpy(), slow_interaction(*arguments), atol=1e-6)


def test_hand_worked_paddings_differ():
    """One word opposite to the one valid frame: cosine -1, or 0 from the padded frame beside it."""
    word, frames = torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[-1.0, 0.0], [0.0, 1.0]]])
    one, first = torch.ones(1, 1), torch.tensor([[1.0, 0.0]])
    scores = {p: token_interaction(word, frames, one, first, one, first, p).item() for p in ("zero", "exclude")}
    # text-to-video: max(-1, 0) or -1; video-to-text: -1 either way
    assert scores == {"zero": -0.5, "exclude": -1.0}


def test_unknown_padding():
    one = torch.ones(1, 1)
    with pytest.raises(ValueError, match="'mean'.*zero, exclude"):
        token_interaction(one[None], one[None], one, one, one, one, "mean")


@pytest.mark.parametrize("mask", [[[1, 1, 0]], [[0, 0, 0]], [[0, 1, 0]]])
def test_weights_sum_to_one_over_valid_tokens(mask):
    mask = torch.tensor(mask)
    expected = float(mask.any())
    for weights in (softmax_weights(torch.tensor([[3.0, -50.0, 80.0]]), mask), uniform_weights(mask)):
        assert weights.sum().item() == pytest.approx(expected)
        assert (weights[mask == 0] == 0).all()


def test_softmax_weights_by_hand():
    weights = softmax_weights(torch.tensor([[0.0, 1.0986123, 9.0]]), torch.tensor([[1, 1, 0]]))  # e^1.0986 = 3
    assert weights.tolist() == [pytest.approx([0.25, 0.75, 0.0])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_empty_rows_have_finite_gradients(dtype):
    logits = torch.zeros(2, 3, dtype=dtype, requires_grad=True)
    weights = softmax_weights(logits, torch.tensor([[0, 0, 0], [1, 0, 1]]))
    (weights * torch.arange(3)).sum().backward()
    assert weights[0].tolist() == [0, 0, 0]
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("arch", "keys"),
    [
        (1, ["weight", "bias"]),
        (2, ["0.weight", "0.bias", "2.weight", "2.bias"]),
        (3, ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"]),
    ],
)
def test_weight_mlp_keys_and_start(arch, keys):
    torch.manual_seed(0)
    network = weight_mlp(400, arch)
    assert list(network.state_dict()) == keys
    assert network(torch.zeros(2, 3, 400)).shape == (2, 3, 1)
    for layer in (layer for layer in network.modules() if isinstance(layer, nn.Linear)):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.15)
        assert not layer.bias.any()


def test_unknown_arch():
    with pytest.raises(ValueError, match="wti_arch 0.*1, 2, 3"):
        weight_mlp(8, 0)
