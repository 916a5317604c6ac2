"""The benchmark of Qdrant's embedded mode: its tables, and scores that are the exact scan's."""

from benchmarks import qdrant


def test_report(tmp_path, capsys):
    output = tmp_path / "report.md"
    qdrant.main(["--videos", "12", "--frames", "3", "--count", "12", "--repeats", "2", "--output", str(output)])
    report = output.read_text(encoding="utf-8")
    assert report == capsys.readouterr().out
    sizes, times = (line.split(" | ") for line in report.splitlines() if line.startswith("| 12 |"))
    assert sizes[1] == f"{4 * (3 * 512 + 512 + 3 + 3):,}"  # frames, pooled vector, weights, seconds
    assert int(sizes[2].replace(",", "")) > 9 * 4 * 512  # a pickle takes nine bytes a number
    assert times[-2] == "100 %"  # as many candidates as videos
    assert float(times[-1].removesuffix(" |")) <= 1e-6
