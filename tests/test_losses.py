"""CrossEn by hand."""

import math

import pytest
import torch

from modules.losses import CrossEn


def test_hand_worked():
    # rows: softmax of (ln 3, 0) at the diagonal is 3/4; of (0, 0) is 1/2
    logits = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    expected = -(math.log(3 / 4) + math.log(1 / 2)) / 2
    assert CrossEn()(logits).item() == pytest.approx(expected)


def test_large_logits_stay_finite():
    logits = torch.tensor([[1e4, 0.0], [1e4, 0.0]], requires_grad=True)
    loss = CrossEn()(logits)
    loss.backward()
    assert loss.item() == pytest.approx(5e3)
    assert logits.grad.isfinite().all()
