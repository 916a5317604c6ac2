"""One training epoch: its steps, accumulation, limits and progress lines."""

import logging
import math
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import util
from main_task_retrieval import train_epoch  # CLIP4Clip's users look for it here


class Weights(nn.Module):
    """A model whose loss is the mean over the batch of weight * x, so that the gradient is the mean of x."""

    def __init__(self, weight: float = 1.0, logit_scale: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.clip = nn.Module()
        self.clip.logit_scale = nn.Parameter(torch.tensor(logit_scale))

    def forward(self, input_ids, segment_ids, input_mask, video, video_mask):
        assert segment_ids[0, 0] == 2 and input_mask[0, 0] == 1  # the loader's order, not the model's
        return (self.weight * video).mean()


class RecordingSGD(torch.optim.SGD):
    """Plain gradient descent with rate 1 that keeps the weight after each step."""

    def __init__(self, model):
        super().__init__(model.parameters(), lr=1.0)
        self.model, self.weights = model, []

    def step(self, closure=None):
        super().step(closure)
        self.weights.append(self.model.weight.item())

    def get_lr(self):
        return [1e-4, 1e-7, 1e-4, 1e-7]


def batch(*values: float) -> tuple[torch.Tensor, ...]:
    """input_ids, input_mask, segment_ids, video, video_mask with `values` for a video."""
    rows = len(values)
    return torch.zeros(rows, 1), torch.ones(rows, 1), torch.full((rows, 1), 2), torch.tensor(values), torch.ones(rows)


def run_epoch(model, batches, accumulation=1, n_display=100, global_step=0):
    optimizer = RecordingSGD(model)
    args = SimpleNamespace(
        gradient_accumulation_steps=accumulation, grad_cache_chunk=0, skip_nonfinite=0, n_display=n_display, epochs=5
    )
    process = util.Process(torch.device("cpu"), rank=1)  # another rank shows no progress bar
    loss, steps = train_epoch(0, args, model, batches, process, optimizer, global_step)
    return loss, steps, optimizer


def test_an_epoch_steps_after_every_batch():
    model = Weights(1.0)
    loss, steps, optimizer = run_epoch(model, [batch(0.1, 0.3), batch(0.5)], global_step=7)
    assert optimizer.weights == pytest.approx([1 - 0.2, 0.8 - 0.5])
    assert loss == pytest.approx((1 * 0.2 + 0.8 * 0.5) / 2)
    assert steps == 9
    assert model.weight.grad is None
    assert model.training


def test_accumulation_steps_on_the_mean_of_its_parts():
    """Five batches in groups of two; the last group has one and is not made smaller for that."""
    batches = [batch(0.1), batch(0.3), batch(0.2), batch(0.6), batch(0.25)]
    loss, steps, optimizer = run_epoch(Weights(1.0), batches, accumulation=2)
    assert optimizer.weights == pytest.approx([1 - (0.1 + 0.3) / 2, 0.8 - (0.2 + 0.6) / 2, 0.4 - 0.25])
    assert loss == pytest.approx((0.1 + 0.3 + 0.8 * 0.2 + 0.8 * 0.6 + 0.4 * 0.25) / 5)
    assert steps == 3


def test_accumulation_equals_the_whole_batch():
    _, _, halves = run_epoch(Weights(1.0), [batch(0.1, 0.4), batch(0.3, 0.8)], accumulation=2)
    _, _, whole = run_epoch(Weights(1.0), [batch(0.1, 0.4, 0.3, 0.8)])
    assert halves.weights == pytest.approx([0.6])
    assert whole.weights == pytest.approx([0.6])


def test_accumulation_longer_than_the_epoch():
    _, steps, optimizer = run_epoch(Weights(1.0), [batch(0.1), batch(0.3), batch(0.2)], accumulation=8)
    assert steps == 1
    assert optimizer.weights == pytest.approx([1 - 0.2])


def test_gradient_norm_is_cut_to_one():
    _, _, optimizer = run_epoch(Weights(2.0), [batch(5.0), batch(-30.0)])
    assert optimizer.weights == pytest.approx([1.0, 2.0], abs=1e-5)


@pytest.mark.parametrize(("start", "end"), [(9.0, math.log(100)), (4.0, 4.0)])
def test_logit_scale_stays_within_its_bound(start, end):
    model = Weights(logit_scale=start)
    run_epoch(model, [batch(0.1)])
    assert model.clip.logit_scale.item() == pytest.approx(end)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_loss_that_is_not_finite_stops_before_the_step(value, accumulation):
    model = Weights(1.0)
    optimizer = RecordingSGD(model)
    args = SimpleNamespace(
        gradient_accumulation_steps=accumulation, grad_cache_chunk=0, skip_nonfinite=0, n_display=100, epochs=5
    )
    batches = [batch(0.1), batch(0.1), batch(0.1), batch(value), batch(0.1)]
    with pytest.raises(FloatingPointError, match=r"the loss is -?(nan|inf) in epoch 3, batch 4 of 5"):
        train_epoch(2, args, model, batches, util.Process(torch.device("cpu"), rank=1), optimizer, 0)
    assert len(optimizer.weights) == 3 // accumulation
    assert model.weight.item() == optimizer.weights[-1]


def test_progress_lines(caplog):
    """Every `n_display` steps of the whole run, in CLIP4Clip's wording."""
    with caplog.at_level(logging.INFO):
        run_epoch(Weights(1.0), [batch(0.0625)] * 6, accumulation=2, n_display=2, global_step=3)
    expected = (("2/6", "0.062500"), ("6/6", "0.054688"))  # the second is 0.0625 (1 - 2 * 0.0625)
    for message, (step, loss) in zip(caplog.messages, expected, strict=True):
        start = f"Epoch: 1/5, Step: {step}, Lr: 0.000000100-0.000100000, Loss: {loss}, Time/step: "
        rest = (
            r"\d+\.\d{6} \(data 0\.000000, compute \d+\.\d{6}\), Clips/s: [\d.]+, Logit scale: 1\.00, "
            r"Gradient norm: 0\.\d{3}, Peak memory: \d+\.\d\d GB, Eta: 0:00:00"
        )
        assert re.fullmatch(re.escape(start) + rest, message), message
