"""Rows of an index are those of the file, in any order, whether or not they stay in memory; other rows are errors."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from video_search import stored_rows
from video_search.index_files import DamagedIndexError, crc32
from video_search.stored_rows import Parts, StoredRows, available_bytes

WIDTH = 3


def write_rows(path, counts: list[int], gaps: list[int], order: list[int]) -> tuple[np.ndarray, Parts]:
    """Write the rows of videos with dead rows before each, in the order of a file; return the rows of all videos."""
    random = np.random.default_rng(len(counts))
    rows = [random.standard_normal((count, WIDTH)).astype("<f4") for count in counts]
    firsts, length = np.zeros(len(counts), np.int64), 0
    with path.open("wb") as file:
        for video in order:
            file.write(np.full((gaps[video], WIDTH), np.nan, "<f4").tobytes() + rows[video].tobytes())
            firsts[video] = length + gaps[video]
            length += gaps[video] + counts[video]
    names = [f"{video}.mp4" for video in range(len(counts))]
    return np.concatenate(rows), Parts(names, firsts, np.array(counts), [crc32(part) for part in rows])


@settings(deadline=None, max_examples=100)
@given(data=st.data(), counts=st.lists(st.integers(1, 4), min_size=1, max_size=7), keep=st.booleans())
def test_rows_are_those_of_the_file(tmp_path_factory, data, counts, keep):
    gaps = data.draw(st.lists(st.integers(0, 2), min_size=len(counts), max_size=len(counts)))
    order = data.draw(st.permutations(range(len(counts))))
    path = tmp_path_factory.mktemp("rows") / "rows.f32"
    expected, parts = write_rows(path, counts, gaps, order)
    rows = StoredRows(path, WIDTH, parts, "", keep)
    assert rows.shape == expected.shape
    for _ in range(3):
        first, last = sorted(data.draw(st.tuples(st.integers(0, len(rows)), st.integers(0, len(rows)))))
        np.testing.assert_array_equal(rows[first:last], expected[first:last])
        indices = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=9)), dtype=np.int64)
        np.testing.assert_array_equal(rows[indices], expected[indices])
    np.testing.assert_array_equal(np.asarray(rows), expected)


def change(path, offset: int, values: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(values)


@pytest.mark.parametrize("keep", [True, False])
def test_a_file_that_changes_while_it_is_open(tmp_path, keep):
    """It is cut short, and written over, in place, as a copy that is put back does it."""
    path = tmp_path / "rows.f32"
    expected, parts = write_rows(path, [2, 1, 2], [0, 0, 0], [0, 1, 2])
    rows = StoredRows(path, WIDTH, parts, "make it again", keep)
    np.testing.assert_array_equal(rows[0:2], expected[0:2])
    change(path, 0, bytes(3 * 4 * WIDTH))
    with pytest.raises(DamagedIndexError, match="rows.f32: the vectors of '1.mp4' do not match.*; make it again"):
        rows[2:3]
    os.truncate(path, 4 * WIDTH)
    with pytest.raises(DamagedIndexError, match="rows.f32 was cut short, to 12 bytes; make it again"):
        rows[3:5]
    if keep:
        np.testing.assert_array_equal(rows[0:2], expected[0:2])
    else:
        with pytest.raises(DamagedIndexError, match="cut short"):
            rows[0:2]
    path.unlink()
    assert rows.checksums() == ([parts.checksums[0], None, None] if keep else [None] * 3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_without_checksums_must_be_finite(tmp_path, value):
    path = tmp_path / "rows.f32"
    _, parts = write_rows(path, [2, 1, 2], [0, 0, 0], [0, 1, 2])
    change(path, 4 * WIDTH * 2, np.array([value], "<f4").tobytes())
    rows = StoredRows(path, WIDTH, parts._replace(checksums=[None] * 3), "")
    assert rows.checksums() == [parts.checksums[0], None, parts.checksums[2]]
    with pytest.raises(DamagedIndexError, match="the vectors of '1.mp4' are not finite"):
        rows[:]


def test_a_disk_that_fails(tmp_path, monkeypatch):
    _, parts = write_rows(tmp_path / "rows.f32", [1], [0], [0])
    rows = StoredRows(tmp_path / "rows.f32", WIDTH, parts, "")

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(DamagedIndexError, match="rows.f32 cannot be read: Input/output error"):
        rows[:]


def test_files_are_closed_with_their_reader(tmp_path):
    _, parts = write_rows(tmp_path / "rows.f32", [1], [0], [0])
    before = len(os.listdir("/proc/self/fd"))
    rows = StoredRows(tmp_path / "rows.f32", WIDTH, parts, "")
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del rows
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_container_has_less_memory_than_its_machine(tmp_path, monkeypatch):
    for name, content in (
        ("meminfo", "MemTotal: 9 kB\nMemAvailable:  2000 kB\n"),
        ("less", "1024\n"),
        ("max", "max\n"),
    ):
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(stored_rows, "MEMORY_FILE", tmp_path / "meminfo")
    for limit, expected in (("max", 2000 * 1024), ("missing", 2000 * 1024), ("less", 1024)):
        monkeypatch.setattr(stored_rows, "LIMIT_FILES", (tmp_path / limit,))
        assert available_bytes() == expected
    _, parts = write_rows(tmp_path / "rows.f32", [60], [0], [0])
    rows = StoredRows(tmp_path / "rows.f32", WIDTH, parts, "")  # 720 of 1024 bytes
    assert not np.shares_memory(rows[:], rows[:])
    monkeypatch.setattr(stored_rows, "LIMIT_FILES", ())
    rows = StoredRows(tmp_path / "rows.f32", WIDTH, parts, "")
    assert np.shares_memory(rows[:], rows[:])
