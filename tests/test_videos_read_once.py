"""How often a video is decoded, counted on the real annotation files: 670 videos of MSVD with 27,763 captions."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dataloaders import data_dataloaders
from dataloaders.data_dataloaders import DATALOADER_DICT, evaluation_loaders
from dataloaders.frame_cache import FrameCache


class CountingExtractor:
    """One grey frame for every file, and how often each was read."""

    framerate, size = 1, 4

    def __init__(self):
        self.reads = Counter()

    def read_frames(self, path, max_frames, **_):
        self.reads[Path(path).stem] += 1
        return np.full((1, 3, 4, 4), 128, dtype=np.uint8)


class FirstLetters:
    """Any text is its first word's first letter."""

    def tokenize(self, text):
        return text[:1]

    def convert_tokens_to_ids(self, tokens):
        return [len(token) for token in tokens]


@pytest.fixture
def args(real_annotations, tmp_path) -> SimpleNamespace:
    folder = real_annotations / "msvd"
    for name in (folder / "test_list.txt").read_text().split():
        (tmp_path / f"{name}.avi").write_bytes(b"a video")
    return SimpleNamespace(
        data_path=str(folder), features_path=str(tmp_path), feature_framerate=1, max_words=4, max_frames=2,
        slice_framepos=2, eval_frame_order=0, seed=0, batch_size_val=64, num_thread_reader=0, holdout=0,
    )  # fmt: skip


@pytest.mark.parametrize("cached", [False, True])
def test_an_evaluation_reads_each_video_once_and_with_a_cache_only_the_first_does(args, tmp_path, monkeypatch, cached):
    counter = CountingExtractor()
    extractor = FrameCache(tmp_path / "cache", counter) if cached else counter
    monkeypatch.setattr(data_dataloaders, "build_extractor", lambda *_: extractor)
    loader, length = DATALOADER_DICT["msvd"]["test"](args, FirstLetters())
    assert length == 27_763
    for evaluation in (1, 2):
        for rank in range(2):
            _, videos = evaluation_loaders(loader, rank, world_size=2)
            assert all(mask.sum() == len(mask) for _, mask in videos)
        assert len(counter.reads) == 670
        assert set(counter.reads.values()) == {1 if cached else evaluation}
