"""The content of a split: what counts as a change, and what does not."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from dataloaders.annotations import Annotations, Caption
from dataloaders.fingerprint import END_BYTES, SplitContent, file_content

TEXTS = [("a", "one"), ("b", "two"), ("a", "three")]


@pytest.fixture
def videos(tmp_path) -> dict[str, Path]:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.mp4").write_bytes(name.encode() * 3 * END_BYTES)
    return {name: folder / f"{name}.mp4" for name in "ab"}


def split(videos: dict[str, Path], texts=TEXTS) -> Annotations:
    return Annotations([Caption(*fields) for fields in texts], videos)


def changes(before: Annotations, now: Annotations, change=lambda: None) -> list[str]:
    """The differences of two splits, whose state travels through torch.save; `change` comes between them."""
    saved = SplitContent(**SplitContent.of(before).state())
    change()
    return saved.differences(SplitContent.of(now), now)


def test_the_same_content_elsewhere_and_touched_is_no_change(videos, tmp_path):
    shutil.copytree(tmp_path / "videos", tmp_path / "copies" / "below")
    moved = {name: tmp_path / "copies" / "below" / path.name for name, path in videos.items()}
    moved["b"] = moved["b"].rename(moved["b"].with_suffix(".mkv"))
    os.utime(moved["a"], (1, 1))
    assert changes(split(videos), split(moved)) == []
    assert SplitContent.of(split(videos)).sha256() == SplitContent.of(split(moved)).sha256()


@pytest.mark.parametrize(
    ("texts", "line"),
    [
        ([TEXTS[0], ("b", "2"), TEXTS[2]], "3 captions became 3: 1 removed, 1 added, the first for 'b': '2'"),
        ([("b", "one"), *TEXTS[1:]], "3 captions became 3: 1 removed, 1 added, the first for 'b': 'one'"),
        ([("a", "one", 0.0, 2.0), *TEXTS[1:]], "3 captions became 3: 1 removed, 1 added, the first for 'a': 'one'"),
        (TEXTS[:2], "3 captions became 2: 1 removed, 0 added"),
        ([*TEXTS, TEXTS[0]], "3 captions became 4: 0 removed, 1 added, the first for 'a': 'one'"),
        (TEXTS[::-1], "the order of its 3 captions differs"),
    ],
)  # fmt: skip
def test_a_changed_caption(videos, texts, line):
    assert changes(split(videos), split(videos, texts)) == [line]
    assert SplitContent.of(split(videos)).sha256() != SplitContent.of(split(videos, texts)).sha256()


@pytest.mark.parametrize("place", [0, END_BYTES - 1, 2 * END_BYTES, 3 * END_BYTES - 1])
def test_a_changed_byte_at_the_ends_of_a_file(videos, place):
    def change() -> None:
        content = bytearray(videos["b"].read_bytes())
        content[place] ^= 1
        videos["b"].write_bytes(content)

    (line,) = changes(split(videos), split(videos), change)
    assert line == f"1 video files have another content, the first is '{videos['b']}' ({3 * END_BYTES} bytes)"


def test_a_file_cut_short_or_gone(videos):
    (line,) = changes(split(videos), split(videos), lambda: videos["a"].write_bytes(b"a"))
    assert line.endswith(f"a.mp4' ({3 * END_BYTES} bytes before, 1 now)")
    (line,) = changes(split(videos), split(videos), videos["a"].unlink)
    assert line.endswith("a.mp4' (1 bytes before, -1 now)")


def test_videos_that_come_and_go(videos):
    one = {"a": videos["a"]}
    assert changes(split(videos), split(one)) == ["2 videos became 1: 1 removed, 0 added, the first is 'b'"]
    assert changes(split(one), split(videos)) == ["1 videos became 2: 0 removed, 1 added, the first is 'b'"]


@pytest.mark.parametrize("size", [0, 1, END_BYTES, END_BYTES + 1, 2 * END_BYTES, 2 * END_BYTES + 1])
def test_every_byte_of_a_short_file_counts_once(tmp_path, size):
    """Two files of one size are the same if and only if their ends are."""
    (tmp_path / "a").write_bytes(bytes(size))
    (tmp_path / "b").write_bytes(bytes(size))
    assert file_content(tmp_path / "a") == file_content(tmp_path / "b")
    assert file_content(tmp_path / "a")[0] == size
    if size:
        (tmp_path / "b").write_bytes(bytes(size - 1) + b"x")
        assert file_content(tmp_path / "a") != file_content(tmp_path / "b")


def test_captions_are_a_tensor_outside_the_pickle(videos):
    """The pickle of a weights file is bounded, and 200,000 captions would fill it."""
    state = SplitContent.of(split(videos)).state()
    assert state["captions"].dtype == torch.int64 and state["captions"].shape == (3,)
