"""The benchmark of the training step: its plain step computes what ours does, and its report has every row."""

import pytest
import torch

from benchmarks import step

CPU = torch.device("cpu")


@pytest.mark.parametrize("head", step.HEADS)
def test_plain_and_ours_take_the_same_steps(head, monkeypatch):
    """In double precision: the updates divide by moments near 0, which would enlarge float32's rounding."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    plain, ours = step.build_contestants("tiny", head, "fp32", compiled=False, device=CPU)
    for contestant in (plain, ours):
        contestant.model.double()
    batch = step.random_batch(4, ours.model, CPU)
    loss_difference, gradient_difference = step.largest_difference(plain, ours, "fp32", batch)
    assert loss_difference < 1e-7  # the frames alone are normalised in float32
    assert gradient_difference < 1e-6
    before = ours.model.clip.visual.proj.detach().clone()
    step.measure([plain, ours], "fp32", batch, repeats=2, warm_up=0)
    assert not torch.equal(before, ours.model.clip.visual.proj)
    for name, expected in plain.model.state_dict().items():
        torch.testing.assert_close(ours.model.state_dict()[name], expected, rtol=0, atol=1e-8, msg=name)


def test_report(tmp_path, capsys):
    output = tmp_path / "step.md"
    flags = "--device cpu --clip tiny --head meanP --precision bf16 --batch_size 2 --repeats 1 --profile"
    step.main([*flags.split(), "--output", str(output)])
    report = output.read_text(encoding="utf-8")
    assert report in capsys.readouterr().out
    rows = [line.split(" | ")[:5] for line in report.splitlines() if line.startswith("| tiny")]
    assert rows == [["| tiny", "2 x 12", "meanP", "bf16", name] for name in ("plain", "ours")]
    assert "aten::addmm" in report


def test_operations_counted():
    ours = step.build_contestants("tiny", "meanP", "fp32", compiled=False, device=CPU)[1]
    flops = step.plain_flops(ours.model.state_dict(), "meanP", step.random_batch(2, ours.model, CPU))
    tokens, words, width = 2 * step.FRAMES * 17, 2 * step.WORDS, 128
    # a block of width w has 12 w^2 multiply-adds a token; the backward costs twice the forward
    matrices = 3 * 2 * 4 * 12 * width**2 * (tokens + words)
    # attention, patches and projections come on top
    assert matrices < flops < 1.2 * matrices
