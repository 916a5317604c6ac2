"""The benchmark of training checkpoints: every contestant has its row, and a point is what was asked for."""

import torch

from benchmarks import checkpoint
from benchmarks.step import build_contestants, random_batch
from modules.resume import TrainingCheckpoints


def test_report(tmp_path, capsys):
    output = tmp_path / "checkpoint.md"
    checkpoint.main(["--clip", "tiny", "--batch_size", "2", "--repeats", "1", "--output", str(output)])
    report = output.read_text(encoding="utf-8")
    assert report in capsys.readouterr().out
    rows = [line.split(" | ")[0] for line in report.splitlines() if line.startswith("| ")]
    assert rows == ["| what", "| step", "| stall", "| step, writing", "| until whole", "| torch.save"]


def test_a_point_holds_the_model_and_both_moments(tmp_path):
    cpu = torch.device("cpu")
    contestant = build_contestants("tiny", "meanP", "fp32", compiled=False, device=cpu)[1]
    _, size = checkpoint.measure(contestant, random_batch(2, contestant.model, cpu), tmp_path, repeats=1)
    weights = sum(parameter.numel() for parameter in contestant.model.parameters())
    assert 0.99 < size / (3 * 4 * weights) < 1.05
    found = TrainingCheckpoints(tmp_path).newest()
    assert found["model.bin"].keys() == contestant.model.state_dict().keys()
