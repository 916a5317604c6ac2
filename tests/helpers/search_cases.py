"""For the tests of an index: files, vectors computed from their bytes, and small models of every head."""

import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modules.modeling import CLIP4Clip
from scripts.miniature.tiny_clip import tiny_clip_state_dict
from video_search import indexing
from video_search.index_reader import IndexReader
from video_search.index_writer import IndexWriter
from video_search.reading import UnreadableFile
from video_search.vectors import VideoVectors

WIDTH = 8


def vectors_of(content: bytes) -> VideoVectors:
    """Return the vectors of one video of 1 to 4 frames, equal only for files of equal content."""
    random = np.random.default_rng(list(hashlib.sha256(content).digest()))
    count = int(random.integers(1, 5))
    frames, pooled = random.standard_normal((count, WIDTH)), random.standard_normal((1, WIDTH))
    weights, floors = random.random(count), np.array([-np.inf if count == 4 else 0])
    frames, weights, seconds, floors, pooled = (
        array.astype(np.float32) for array in (frames, weights, np.arange(count), floors, pooled)
    )
    return VideoVectors(frames, weights, seconds, np.array([count]), floors, pooled)


class FakeEncoder:
    """Return `vectors_of` files; those that begin with "bad" are unreadable. `calls` lists the names that it read.

    Files whose content begins with "shut" cannot be opened while `is_disk_broken`.
    """

    is_disk_broken = True

    def __init__(self, settings: dict | None = None, fingerprint: str = "f" * 64):
        self.settings = {"sim_header": "wti"} if settings is None else settings
        self.fingerprint = fingerprint
        self.calls: list[str] = []

    def videos(self, paths, processes=None, progress=False, on_read=None):
        for path in paths:
            self.calls.append(Path(path).name)
            content = Path(path).read_bytes()
            if content.startswith(b"shut") and self.is_disk_broken:
                yield path, UnreadableFile(path, "Input/output error", is_transient=True)
            elif content.startswith(b"bad"):
                yield path, UnreadableFile(path, "no video")
            else:
                yield path, vectors_of(content)

    def calls_since(self) -> list[str]:
        """Return the names that were read since the last call, sorted."""
        calls, self.calls = sorted(self.calls), []
        return calls


def write_videos(folder: Path) -> Path:
    """Write seven files with the names of videos, and one other."""
    contents = {f"{name}.mp4": f"content of {name}" for name in "abcdef"}
    return write_files(folder, {**contents, "deep/er/g.MKV": "g", "notes.txt": "no video"})


@pytest.fixture
def videos(tmp_path) -> Path:
    return write_videos(tmp_path / "videos")


@pytest.fixture
def encoder() -> FakeEncoder:
    return FakeEncoder()


@pytest.fixture
def made(tmp_path, videos, encoder) -> Path:
    """Return the index of the seven videos."""
    run_update(tmp_path / "index", videos, encoder)
    return tmp_path / "index"


def write_files(folder: Path, contents: dict[str, str]) -> Path:
    """Return the content of all files by their path below the folder."""
    for path, content in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)
    return folder


def write_checkpoint(folder: Path, sim_header: str, agg_module: str = "none", **flags) -> dict:
    """Write a checkpoint of random weights and its CLIP of width 32; return the flags that name and fit them."""
    clip = folder / "clip.pt"
    if not clip.exists():
        weights = tiny_clip_state_dict(
            embed_dim=32, vision_width=32, vision_layers=1, patch_size=16, image_size=32, text_width=32, text_layers=1
        )
        torch.save(weights, clip)
    flags = {
        "pretrained_clip_name": str(clip), "sim_header": sim_header, "agg_module": agg_module, "max_words": 12,
        "max_frames": 4, "cross_num_hidden_layers": 1, **flags,
    }  # fmt: skip
    torch.manual_seed(0)
    model = CLIP4Clip.from_pretrained("cross-base", task_config=SimpleNamespace(**flags))
    for name, weight in model.named_parameters():
        if not name.startswith("clip."):
            torch.nn.init.normal_(weight, std=0.3)  # heads that change what comes out
    path = folder / f"{sim_header}-{agg_module}-{flags.get('linear_patch', '2d')}.bin"
    torch.save(model.state_dict(), path)
    return {**flags, "init_model": str(path)}


def run_update(index: Path, folder: Path, encoder: FakeEncoder, **options) -> indexing.Summary:
    store = IndexWriter.open(index)
    try:
        summary = indexing.update(store, folder, encoder, **options)
        store.compact()
        return summary
    finally:
        store.close()


def counts(summary: indexing.Summary) -> tuple[int, ...]:
    return summary.added, summary.changed, summary.removed, summary.unchanged, len(summary.unreadable)


def check_index(index: Path, folder: Path) -> None:
    """Assert that the index opens and has, bit for bit, the vectors of the readable videos below the folder."""
    store = IndexReader.open(index)
    expected = {
        path: vectors_of((folder / path).read_bytes())
        for path in indexing.find_files(folder)[0]
        if not (folder / path).read_bytes().startswith(b"bad")
    }
    assert set(store.paths) == set(expected)
    assert len(store) == len(store.vectors) == len(expected)
    for place, path in enumerate(store.paths):
        for found in (store.vectors.take(np.array([place])), store.example(path)):
            for name, array in vars(expected[path]).items():
                np.testing.assert_array_equal(getattr(found, name), array)


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}
