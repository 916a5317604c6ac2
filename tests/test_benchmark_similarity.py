"""The benchmark of the scores compares forms that agree, and measures the memory that is taken."""

import sys

import pytest
import torch

from benchmarks import memory, similarity
from benchmarks.similarity import EVALUATIONS, Shape, random_gallery, training_run


@pytest.mark.parametrize("shape", [Shape(40, 35, 20, 3), Shape(3, 40, 4, 12)])
def test_contestants_agree(shape):
    gallery = random_gallery(shape, "cpu")
    scores = {name: call(gallery) for name, call in EVALUATIONS.items()}
    assert scores["plain"].shape == (shape.texts, shape.videos)
    for name, tolerance in (("weights once", 1e-6), ("ours", 1e-6), ("ours bf16", 5e-3)):
        assert (scores[name] - scores["plain"]).abs().max() < tolerance


def test_training_contestants_agree():
    plain, ours = (training_run(name, Shape(6, 6, 5, 4), "cpu", True) for name in ("plain", "ours"))
    for expected, found in zip(plain.gradients, ours.gradients, strict=True):
        assert (found - expected).abs().max() <= 2e-6 * expected.abs().max()


def test_sections_and_output(tmp_path, capsys):
    output = tmp_path / "report.md"
    similarity.main(["--sections", "rounding", "gallery", "--rounding", "30", "--gallery", "20x6x8x3",
                     "--output", str(output)])  # fmt: skip
    report = output.read_text(encoding="utf-8")
    assert report == capsys.readouterr().out
    assert "## rounding" in report
    assert "## evaluation" not in report
    (row,) = (line for line in report.splitlines() if line.startswith("| 20 | 6 | 8 | 3 |"))
    assert row.endswith("| True |")
    (exact,) = (line for line in report.splitlines() if line.startswith("| float32 | t2v |"))
    assert exact.endswith("| 0 of 30 | 0.0e+00 |")


def peaks(sizes: list[int]) -> list[tuple[int, int]]:
    """For tensors of these bytes, one after the other: what each adds at its highest, and what it leaves."""
    found = []
    for size in sizes:
        memory.forget_peak("cpu")
        before = memory.held_bytes("cpu")
        torch.ones(size // 4)
        found.append((memory.peak_bytes("cpu") - before, memory.held_bytes("cpu") - before))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells the peak of the CPU's memory")
def test_peak_is_that_of_the_last_work():
    """In a new process: this one may have freed memory of such a size and keep it, and the tensor then adds nothing."""
    page_counts = 1 << 20  # the kernel counts pages in lots
    sizes = [1 << 25, 1 << 28, 1 << 26]
    _, *found = memory.in_new_process(peaks, sizes)  # with the first, PyTorch's code comes into memory
    for size, (added, left) in zip(sizes[1:], found, strict=True):
        assert added == pytest.approx(size, abs=page_counts)
        assert left < page_counts
