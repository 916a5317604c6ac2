"""The gradient cache beside plain autograd on the whole batch; test_distributed has it over several processes."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from modules.grad_cache import grad_cache_backward
from modules.modeling import CLIP4Clip, drop_pair_axis
from tests.helpers.gather_worker import Run, double_inputs
from tests.helpers.golden_cases import load_case, load_inputs

CASES = [
    "meanP_3d", "seqLSTM", "seqTransf", "tightTransf", "ti", "wti", "wti_seqLSTM", "xti",
    "wti_cdcr2", "wti_seqTransf_cdcr3", "dp_seqTransf_cdcr1",
]  # fmt: skip


def gradients(model: CLIP4Clip) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_gradients(actual: CLIP4Clip, expected: CLIP4Clip, tolerance: float) -> None:
    """Equal to `tolerance` times the largest entry of all, for the same parameters."""
    actual, expected = gradients(actual), gradients(expected)
    assert actual.keys() == expected.keys()
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (actual[name] - gradient).abs().max() <= tolerance * largest, name


def assert_as_exact(actual: CLIP4Clip, plain: CLIP4Clip, exact: CLIP4Clip) -> None:
    """float32's gradients are hardly farther from those in double precision than those of the plain batch are."""
    actual, plain, exact = gradients(actual), gradients(plain), gradients(exact)
    assert actual.keys() == plain.keys() == exact.keys()
    few_ulps = 8 * torch.finfo(torch.float32).eps * max(gradient.abs().max() for gradient in exact.values())
    for name, gradient in exact.items():
        error, plain_error = ((found[name] - gradient).abs().max() for found in (actual, plain))
        assert error <= 4 * plain_error + few_ulps, name


def chunked_with_graph(model: CLIP4Clip, batch, chunk: int) -> torch.Tensor:
    """The loss of features that were encoded chunk by chunk, all with their graph."""
    features = [model.encode(*part) for part in zip(*(tensor.split(chunk) for tensor in batch), strict=True)]
    texts, frames = (torch.cat(parts) for parts in zip(*features, strict=True))
    return model.loss_of_features(texts, frames, drop_pair_axis(batch[2]), drop_pair_axis(batch[4]))


@pytest.mark.parametrize("chunk", [1, 4, 7])
@pytest.mark.parametrize("run", [*map(Run, CASES), Run("wti", cdcr=1)], ids=str)
def test_loss_and_gradients_are_those_of_the_batch(golden_parity, run, chunk, monkeypatch):
    """In double precision, so that no mistake hides behind roundings; 4 leaves a smaller last chunk of the 6 pairs."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    cached, plain, batch = run.model(golden_parity), run.model(golden_parity), double_inputs(golden_parity)
    torch.manual_seed(0)  # of CDCR's random matches
    loss = plain(*batch)
    loss.backward()
    torch.manual_seed(0)
    found = grad_cache_backward(cached, batch, chunk)
    assert found.item() == pytest.approx(loss.item(), abs=1e-12)
    assert not found.requires_grad
    assert_gradients(cached, plain, tolerance=1e-9)


@pytest.mark.parametrize("case_name", ["ti", "wti", "wti_seqTransf_cdcr3"])
def test_float32(golden_parity, case_name, monkeypatch):
    case = load_case(golden_parity, case_name)
    cached, plain, exact = case.model().train(), case.model().train(), Run(case_name).model(golden_parity)
    plain(*load_inputs(golden_parity)).backward()
    loss = grad_cache_backward(cached, load_inputs(golden_parity), 2)
    assert loss.item() == pytest.approx(case.outputs["train_loss"].item(), abs=1e-5)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    exact(*double_inputs(golden_parity)).backward()
    assert_as_exact(cached, plain, exact)


@pytest.mark.parametrize("case_name", ["tightTransf", "xti"])
def test_the_cross_encoder_drops_the_same(golden_parity, case_name, monkeypatch):
    """Its dropout is drawn once, when all pairs are scored: the random numbers are those of the plain batch."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    batch = double_inputs(golden_parity)
    losses, models = [], []
    for chunk in (None, 2, None):
        model = Run(case_name).model(golden_parity)
        model.cross.embeddings.dropout.p = 0.1
        torch.manual_seed(len(models) // 2)  # the third is another dropout
        if chunk is None:
            loss = model(*batch)
            loss.backward()
        else:
            loss = grad_cache_backward(model, batch, chunk)
        losses.append(loss.item())
        models.append(model)
    assert losses[1] == pytest.approx(losses[0], abs=1e-12)
    assert_gradients(models[1], models[0], tolerance=1e-9)
    assert losses[2] != pytest.approx(losses[0], abs=1e-6)


def test_the_encoders_drop_the_same_twice(golden_parity, monkeypatch):
    """With dropout in every block, the second encoding of a chunk must repeat the first one's."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    cached, plain = (Run("wti_seqTransf", cdcr=1).model(golden_parity) for _ in range(2))
    for model in (cached, plain):
        for layer in model.modules():
            if isinstance(layer, nn.LayerNorm):
                layer.register_forward_hook(lambda module, inputs, output: F.dropout(output, 0.2))
    batch = double_inputs(golden_parity)
    torch.manual_seed(3)
    loss = chunked_with_graph(plain, batch, 2)
    loss.backward()
    after_plain = torch.rand(1)
    torch.manual_seed(3)
    assert grad_cache_backward(cached, batch, 2).item() == pytest.approx(loss.item(), abs=1e-12)
    assert torch.rand(1) == after_plain  # the next step's dropout goes on from where the loss drew its matches
    assert_gradients(cached, plain, tolerance=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(golden_parity, dtype):
    """Half precision rounds sums of gradients otherwise; a weight that got none, or another's, is far off."""
    case = load_case(golden_parity, "wti_seqTransf")
    cached, plain = case.model().train(), case.model().train()
    in_backward = []
    for weight in cached.parameters():
        weight.register_hook(lambda gradient: in_backward.append(torch.is_autocast_enabled("cpu")))
    with torch.autocast("cpu", dtype=dtype):
        expected = plain(*load_inputs(golden_parity))
        found = grad_cache_backward(cached, load_inputs(golden_parity), 2)
    expected.backward()
    assert found.dtype == torch.float32
    assert set(in_backward) == {False}
    assert found.item() == pytest.approx(expected.item(), abs=2e-3)
    assert gradients(cached).keys() == gradients(plain).keys()
    for name, gradient in gradients(plain).items():
        if gradient.norm() > 1e-5:  # a bias before a softmax has none but rounding
            assert F.cosine_similarity(gradients(cached)[name].flatten(), gradient.flatten(), dim=0) > 0.99, name


def test_scaler_and_accumulated_steps(golden_parity, monkeypatch):
    """What is back-propagated is the scaled share; the loss that comes back is neither scaled nor a share."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    cached, plain = (Run("wti").model(golden_parity) for _ in range(2))
    whole = double_inputs(golden_parity)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for batch in (whole, [tensor.flip(0)[:4] for tensor in whole]):
        loss = plain(*batch)
        (loss / 2).backward()
        found = grad_cache_backward(cached, batch, 3, scale=lambda loss: scaler.scale(loss / 2))
        assert found.item() == pytest.approx(loss.item(), abs=1e-12)
    monkeypatch.undo()  # the scaler works in float32
    scaler.unscale_(torch.optim.SGD(cached.parameters(), lr=0.1))
    assert_gradients(cached, plain, tolerance=1e-9)


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts what autograd keeps for backward passes, weights apart: `alive` bytes, and their `peak`."""

    def __init__(self, model: nn.Module):
        self.weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.alive = self.peak = 0
        super().__init__(self.pack, lambda box: box[0])

    def pack(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        class Box(list):
            """A list that a weak reference can watch."""

        box = Box([tensor])
        if tensor.untyped_storage().data_ptr() not in self.weights:
            self.alive += tensor.nbytes
            self.peak = max(self.peak, self.alive)
            weakref.finalize(box, self.release, tensor.nbytes)
        return box

    def release(self, size: int) -> None:
        self.alive -= size


def test_memory_is_that_of_a_chunk(golden_parity):
    """24 pairs in chunks of 2 keep 1/12 of the activations, and what the loss needs of the features."""
    model = load_case(golden_parity, "wti_seqTransf").model().train()
    batch = [tensor.repeat(4, *[1] * (tensor.dim() - 1)) for tensor in load_inputs(golden_parity)]
    whole, chunk_alone, loss_alone, cached = (SavedBytes(model) for _ in range(4))
    with whole:
        model(*batch).backward()
    with chunk_alone:
        model(*(tensor[:2] for tensor in batch)).backward()
    with torch.no_grad():
        features = model.encode(*batch)
    with loss_alone:
        leaves = [feature.requires_grad_() for feature in features]
        model.loss_of_features(*leaves, drop_pair_axis(batch[2]), drop_pair_axis(batch[4])).backward()
    with cached:
        grad_cache_backward(model, batch, 2)
    assert whole.alive == cached.alive == 0
    assert 0 < cached.peak <= 1.05 * max(chunk_alone.peak, loss_alone.peak)
    assert cached.peak < whole.peak / 5


def test_a_model_in_evaluation_has_no_loss(golden_parity):
    model = load_case(golden_parity, "meanP").model().eval()
    with pytest.raises(ValueError, match="evaluation mode"):
        grad_cache_backward(model, load_inputs(golden_parity), 2)
    with pytest.raises(ValueError, match="chunk of 0 pairs"):
        grad_cache_backward(model.train(), load_inputs(golden_parity), 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_frames_wait_on_the_host(golden_parity):
    """On a GPU: the batch may stay on the host, and the GPU's dropout is repeated too."""
    cached, plain = (load_case(golden_parity, "wti_seqTransf").model().train().cuda() for _ in range(2))
    for model in (cached, plain):
        model.clip.visual.ln_post.register_forward_hook(lambda module, inputs, output: F.dropout(output, 0.2))
    batch = load_inputs(golden_parity)
    torch.manual_seed(3)
    loss = chunked_with_graph(plain, [tensor.cuda() for tensor in batch], 2)
    loss.backward()
    torch.manual_seed(3)
    assert grad_cache_backward(cached, batch, 2).item() == pytest.approx(loss.item(), abs=1e-5)
    assert_gradients(cached, plain, tolerance=1e-4)
