"""The benchmark of the frame cache runs, drops pages where it says so, and counts bytes and frames right."""

import pytest

from benchmarks import frame_cache


def test_a_short_run(tmp_path, capsys):
    output = tmp_path / "report.md"
    arguments = ["--clips", str(tmp_path / "absent"), "--seconds", "2", "--max_frames", "3", "--repeats", "1"]
    try:
        (result,) = frame_cache.main([*arguments, "--folder", str(tmp_path), "--output", str(output)])
    except OSError as error:
        pytest.skip(str(error))  # the file system keeps every file in memory
    assert result.frames == 2
    frame_bytes = 3 * 224 * 224
    assert 2 * frame_bytes < result.exact_bytes < 2 * frame_bytes + 1000
    assert 0 < result.jpeg_bytes < result.exact_bytes / 2
    assert 0 < result.jpeg_error < 3
    assert min(result.seek, result.decode, result.cold, result.warm, result.warm_copy, result.copy, result.jpeg) > 0
    report = output.read_text(encoding="utf-8")
    assert report == capsys.readouterr().out
    assert "| generated_2s_320x240.mp4 | 2 |" in report
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.md"]


def test_ratios_and_goals_of_the_table():
    one = frame_cache.Result(
        "a.mp4", 12, seek=0.4, decode=0.2, cold=0.004, warm=0.0001, warm_copy=0.0004, copy=0.0002, jpeg=0.01,
        exact_bytes=1_806_000, jpeg_bytes=200_000, jpeg_error=0.8,
    )  # fmt: skip
    lines = frame_cache.table([one, one])
    assert "| a.mp4 | 12 | 400.0 | 200.0 | 4.00 | 100 | 400 | 200 | 10.00 | 1806 | 200 | 0.80 |" in lines
    assert "| decode / cold | 50 | 50 | 50 | 50 | 2 of 2 |" in lines
    assert "| decode / warm | 2000 | 2000 | 2000 | 1000 | 2 of 2 |" in lines
    assert "| decode / warm_copy | 500 | 500 | 500 | 1000 | 0 of 2 |" in lines
    assert "| seek / warm_copy | 1000 | 1000 | 1000 | 1000 | 2 of 2 |" in lines
