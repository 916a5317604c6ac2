"""The contestants of benchmarks/decode.py do the same work, and its tables say what was measured."""

import importlib.util

import numpy as np
import pytest

from benchmarks import decode


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """3 seconds of 64x48 with a key frame every second."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    decode.write_moving_clip(path, 3, 64, 48, decode.GENERATED_FPS)
    return path


def test_contestants_give_the_same_frames(clip):
    ours = decode.read_ours(clip)
    assert ours.shape == (3, 3, 224, 224)
    assert (ours == decode.read_by_grabbing(clip)).all()
    mean, deviation = (np.array(values).reshape(1, 3, 1, 1) for values in (decode.MEAN, decode.DEVIATION))
    floats = (ours / 255 - mean) / deviation
    sought = decode.read_by_seeking(clip)
    assert sought.shape == (12, 3, 224, 224) and sought.dtype == np.float64
    assert np.allclose(sought[:3], floats, atol=1e-5) and not sought[3:].any()
    assert np.abs(ours[0].astype(int) - ours[2]).mean() > 3  # the picture moves


@pytest.mark.skipif(importlib.util.find_spec("decord") is None, reason="decord is not installed")
def test_decord_chooses_the_same_frames(clip):
    mean, deviation = (np.array(values).reshape(1, 3, 1, 1) for values in (decode.MEAN, decode.DEVIATION))
    levels = (decode.read_by_decord(clip) * deviation + mean) * 255
    # Its conversion to RGB rounds otherwise.
    assert np.abs(levels - decode.read_ours(clip)).mean() < 3


def test_the_table_worked_by_hand():
    results = {
        "a.mp4": {"ours": 0.010, "seek": 0.030, "decord": 0.020},
        "b.mp4": {"ours": 0.010, "seek": 0.080, "decord": 0.005},
    }
    lines = decode.table(results).splitlines()
    assert lines[0] == "| clip | ours ms | seek ms | decord ms | seek / ours | decord / ours |"
    assert lines[2:4] == ["| a.mp4 | 10.0 | 30.0 | 20.0 | 3.00 | 2.00 |", "| b.mp4 | 10.0 | 80.0 | 5.0 | 8.00 | 0.50 |"]
    assert lines[-2:] == ["| seek | 3.00 | 5.50 | 3.5 | 1 | 5.0 |", "| decord | 0.50 | 1.25 | 1.0 | 1 |  |"]


def test_medians_leave_out_the_first_round(monkeypatch):
    ticks = iter([0, 9, 10, 11, 20, 23, 30, 32])  # rounds of 9, 1, 3 and 2 seconds
    monkeypatch.setitem(decode.READERS, "ours", lambda path: None)
    assert decode.measure(None, ["ours"], 3, lambda: next(ticks)) == {"ours": 2}


def test_a_run_prints_both_tables_and_the_command(clip, tmp_path, capsys):
    output = tmp_path / "decode.md"
    decode.main(["--clips", str(clip.parent), "--generated", "--repeats", "1", "--output", str(output)])
    printed = capsys.readouterr().out
    assert "python -m benchmarks.decode --clips" in printed and "| clip.mp4 |" in printed and "| seek |" in printed
    assert output.read_text() == printed
