"""ti and wti, in each of their three forms, against hand-worked values and a slow loop over single words and frames."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from modules.token_interaction import (
    masked_softmax,
    pack_tokens,
    packed_interaction,
    token_interaction,
    token_interaction_in_blocks,
    uniform_weights,
    weight_mlp,
)


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


def random_features(generator, rows: int, tokens: int, width: int = 5, dtype=torch.float32):
    """Tokens, and a mask with holes and empty rows."""
    features = torch.randn(rows, tokens, width, generator=generator, dtype=dtype)
    return features, torch.randint(0, 2, (rows, tokens), generator=generator)


def first_channel(tokens: torch.Tensor) -> torch.Tensor:
    """A weight network that anyone can compute."""
    return tokens[..., :1]


def weights_of(features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return masked_softmax(first_channel(features).squeeze(-1), mask)


@settings(deadline=None, max_examples=80)
@given(
    texts=st.integers(1, 3), videos=st.integers(1, 3), words=st.integers(1, 4), frames=st.integers(1, 4),
    padding=st.sampled_from(["zero", "exclude"]), block_bytes=st.sampled_from([4, 100, 1 << 20]),
    seed=st.integers(0, 10_000),
)  # fmt: skip
def test_every_form_equals_the_slow_loop(texts, videos, words, frames, padding, block_bytes, seed):
    generator = torch.Generator().manual_seed(seed)
    text, text_mask = random_features(generator, texts, words)
    video, video_mask = random_features(generator, videos, frames)
    weights = weights_of(text, text_mask), weights_of(video, video_mask)
    arguments = (text, video, text_mask, video_mask, *weights, padding)
    expected = slow_interaction(*arguments)
    np.testing.assert_allclose(token_interaction(*arguments), expected, atol=1e-6)
    np.testing.assert_allclose(token_interaction_in_blocks(*arguments, block_bytes), expected, atol=1e-6)
    packed_texts = pack_tokens(text, text_mask, first_channel, padding)
    packed_videos = pack_tokens(video, video_mask, first_channel, padding)
    np.testing.assert_allclose(packed_interaction(packed_texts, packed_videos, block_bytes), expected, atol=1e-6)


def test_hand_worked_paddings_differ():
    """One word opposite to the one valid frame: cosine -1, or 0 from the padded frame beside it."""
    word, frames = torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[-1.0, 0.0], [0.0, 1.0]]])
    one, first = torch.ones(1, 1), torch.tensor([[1.0, 0.0]])
    scores = {p: token_interaction(word, frames, one, first, one, first, p).item() for p in ("zero", "exclude")}
    # text-to-video: max(-1, 0) or -1; video-to-text: -1 either way
    assert scores == {"zero": -0.5, "exclude": -1.0}


def test_packed_tokens_by_hand():
    """Three rows: one valid token of two, none, both; (3, 4) has norm 5."""
    tokens = torch.tensor([[[9.0, 9.0], [3.0, 4.0]], [[1.0, 1.0], [1.0, 1.0]], [[0.0, 2.0], [-5.0, 0.0]]])
    mask = torch.tensor([[0, 1], [0, 0], [1, 1]])
    packed = pack_tokens(tokens, mask, padding="zero")
    assert packed.vectors.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0], [0, 1], [-1, 0]]
    assert packed.weights.tolist() == [1, 0, 0.5, 0.5]
    assert packed.counts.tolist() == [1, 1, 2]
    assert packed.floor.tolist() == [0, 0, -np.inf]
    assert pack_tokens(tokens, mask, padding="exclude").floor.tolist() == [-np.inf] * 3


@pytest.mark.parametrize("block_bytes", [1, 1000, 1 << 24])
def test_blocks_of_any_size_keep_the_order_of_rows(block_bytes):
    """Rows of equal length are scored together: texts and videos of all lengths come back where they were."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(0, 8, (23, 1), generator=generator)
    text, text_mask = torch.randn(23, 7, 6, generator=generator), (torch.arange(7) < lengths).long()
    video, video_mask = torch.randn(11, 5, 6, generator=generator), (torch.arange(5) < lengths[:11]).long()
    packed = packed_interaction(pack_tokens(text, text_mask), pack_tokens(video, video_mask), block_bytes)
    weights = uniform_weights(text_mask), uniform_weights(video_mask)
    expected = slow_interaction(text, video, text_mask, video_mask, *weights, "zero")
    np.testing.assert_allclose(packed, expected, atol=1e-6)


@pytest.mark.parametrize(("texts", "videos"), [(0, 3), (3, 0), (0, 0)])
def test_no_texts_or_no_videos(texts, videos):
    packed = [pack_tokens(torch.ones(rows, 2, 4), torch.ones(rows, 2)) for rows in (texts, videos)]
    assert packed_interaction(*packed).shape == (texts, videos)


@pytest.mark.parametrize("padding", ["zero", "exclude"])
@pytest.mark.parametrize("block_bytes", [8, 400, 1 << 20])
def test_gradients_by_finite_differences(padding, block_bytes):
    generator = torch.Generator().manual_seed(3)
    text, text_mask = random_features(generator, 4, 4, dtype=torch.float64)
    video, video_mask = random_features(generator, 3, 5, dtype=torch.float64)
    text_mask[1], video_mask[2], text_mask[0] = 0, 0, 1
    weights = [masked_softmax(torch.randn(mask.shape, dtype=torch.float64, generator=generator), mask).requires_grad_()
               for mask in (text_mask, video_mask)]  # fmt: skip

    def score(text, video, *weights):
        return token_interaction_in_blocks(text, video, text_mask, video_mask, *weights, padding, block_bytes)

    assert torch.autograd.gradcheck(score, (text.requires_grad_(), video.requires_grad_(), *weights))


@pytest.mark.parametrize("padding", ["zero", "exclude"])
@pytest.mark.parametrize(("words", "frames"), [(6, 300), (300, 4), (12, 12)])  # 300: an index beyond one byte
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
def test_gradients_equal_the_formulas(padding, words, frames, dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    text, text_mask = random_features(generator, 7, words, 32, dtype)
    video, video_mask = random_features(generator, 5, frames, 32, dtype)
    leaves = [
        text,
        video,
        *(torch.rand(mask.shape, generator=generator, dtype=dtype) for mask in (text_mask, video_mask)),
    ]
    towards = torch.randn(7, 5, generator=generator, dtype=dtype)
    gradients = []
    for form in (token_interaction, token_interaction_in_blocks):
        copies = [leaf.clone().requires_grad_() for leaf in leaves]
        weights = copies[2] * text_mask, copies[3] * video_mask
        form(*copies[:2], text_mask, video_mask, *weights, padding).backward(towards)
        gradients.append([copy.grad for copy in copies])
    for expected, actual in zip(*gradients, strict=True):
        assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize(("padding", "text_gradient"), [("zero", 0.0), ("exclude", 0.5)])
def test_a_maximum_from_padding_has_no_gradient(padding, text_gradient):
    """A word opposite to the only frame: cosine -1, and beside it a padded frame at 0 or nothing."""
    word = torch.tensor([[[-1.0, 0.001]]], requires_grad=True)  # the cosine's slope across is about 1
    frames = torch.tensor([[[1.0, 0.0], [7.0, 7.0]]], requires_grad=True)
    one, first = torch.ones(1, 1), torch.tensor([[1.0, 0.0]])
    none = torch.zeros(1, 2)  # frames without weight leave the word's direction alone
    token_interaction_in_blocks(word, frames, one, first, one, none, padding).backward()
    # half of d cos / d word_2 = word_1 word_2 / |word|^3, up to the sign
    assert word.grad[0, 0, 1].item() == pytest.approx(text_gradient * 0.001, rel=1e-4)
    assert frames.grad[0, 1].tolist() == [0, 0]


def test_one_of_equal_frames_takes_the_gradient():
    word, frames = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[1.0, 1.0], [1.0, 1.0]]], requires_grad=True)
    one, two = torch.ones(1, 1), torch.ones(1, 2)
    token_interaction_in_blocks(word, frames, one, two, one, torch.zeros(1, 2)).backward()
    assert sorted(frames.grad.abs().sum(dim=2)[0].tolist()) == [0, pytest.approx(2 * 0.5 * 8**-0.5)]


def kept_bytes(form, *arguments) -> int:
    """What the graph of one call keeps for its backward."""
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.setdefault(tensor.data_ptr(), tensor), id):
        form(*arguments)
    return sum(tensor.nbytes for tensor in kept.values())


def test_the_graph_keeps_no_cosines():
    generator = torch.Generator().manual_seed(0)
    text, video = torch.randn(16, 32, 8, generator=generator), torch.randn(16, 32, 8, generator=generator)
    weights = torch.rand(16, 32, generator=generator).requires_grad_()
    arguments = (text.requires_grad_(), video, torch.ones(16, 32), torch.ones(16, 32), weights, weights)
    cosines = 4 * 16 * 16 * 32 * 32
    assert kept_bytes(token_interaction, *arguments) > cosines
    assert kept_bytes(token_interaction_in_blocks, *arguments) < cosines / 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision(dtype, autocast):
    generator = torch.Generator().manual_seed(0)
    text, text_mask = random_features(generator, 6, 5, 64)
    video, video_mask = random_features(generator, 4, 3, 64)
    arguments = (text_mask, video_mask, uniform_weights(text_mask), uniform_weights(video_mask))
    expected = slow_interaction(text, video, *arguments, "zero")
    if not autocast:
        text, video, *arguments = (tensor.to(dtype) for tensor in (text, video, *arguments))
    features = [tokens.clone().requires_grad_() for tokens in (text, video)]
    with torch.autocast("cpu", dtype, enabled=autocast):
        scores = token_interaction_in_blocks(*features, *arguments)
    scores.logsumexp(dim=1).sum().backward()
    assert scores.dtype == torch.float32
    rounding = torch.finfo(dtype).eps
    np.testing.assert_allclose(scores.detach().numpy(), expected, atol=rounding)
    if autocast:
        assert np.abs(scores.detach().numpy() - expected).max() > 1e-6  # the cosines are in autocast's dtype
    for tokens in features:
        assert tokens.grad.dtype == tokens.dtype
        assert tokens.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_packed_half_precision(dtype):
    generator = torch.Generator().manual_seed(0)
    text, text_mask = random_features(generator, 6, 5, 64)
    video, video_mask = random_features(generator, 4, 3, 64)
    text[0], text_mask[0] = 0, 1  # no direction at all, in a dtype that rounds the norm's epsilon to 0
    packed = [pack_tokens(side.to(dtype), mask, dtype=dtype) for side, mask in ((text, text_mask), (video, video_mask))]
    assert all(tokens.vectors.dtype == dtype and tokens.weights.dtype == torch.float32 for tokens in packed)
    scores = packed_interaction(*packed)
    weights = uniform_weights(text_mask), uniform_weights(video_mask)
    text[0] = 1e-30  # slow_interaction divides by the norm
    expected = slow_interaction(text, video, text_mask, video_mask, *weights, "zero")
    assert scores.dtype == torch.float32
    assert not scores[0].any()
    np.testing.assert_allclose(scores[1:], expected[1:], atol=torch.finfo(dtype).eps)


def test_autocast_leaves_packed_cosines_alone():
    generator = torch.Generator().manual_seed(0)
    packed = [pack_tokens(*random_features(generator, 5, 4, 64)) for _ in range(2)]
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = packed_interaction(*packed)
    assert torch.equal(under_autocast, packed_interaction(*packed))


def test_unknown_padding():
    one = torch.ones(1, 1)
    for form in (token_interaction, token_interaction_in_blocks):
        with pytest.raises(ValueError, match="'mean'.*zero, exclude"):
            form(one[None], one[None], one, one, one, one, "mean")
    with pytest.raises(ValueError, match="'mean'.*zero, exclude"):
        pack_tokens(one[None], one, padding="mean")


@pytest.mark.parametrize("mask", [[[1, 1, 0]], [[0, 0, 0]], [[0, 1, 0]]])
def test_weights_sum_to_one_over_valid_tokens(mask):
    mask = torch.tensor(mask)
    expected = float(mask.any())
    for weights in (masked_softmax(torch.tensor([[3.0, -50.0, 80.0]]), mask), uniform_weights(mask)):
        assert weights.sum().item() == pytest.approx(expected)
        assert (weights[mask == 0] == 0).all()


def test_softmax_weights_by_hand():
    weights = masked_softmax(torch.tensor([[0.0, 1.0986123, 9.0]]), torch.tensor([[1, 1, 0]]))  # e^1.0986 = 3
    assert weights.tolist() == [pytest.approx([0.25, 0.75, 0.0])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_empty_rows_have_finite_gradients(dtype):
    logits = torch.zeros(2, 3, dtype=dtype, requires_grad=True)
    weights = masked_softmax(logits, torch.tensor([[0, 0, 0], [1, 0, 1]]))
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
