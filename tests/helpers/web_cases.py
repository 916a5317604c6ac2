"""Videos that browsers play, and a fake search over them that counts the letters of the query."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np

from dataloaders.rawvideo_util import RawVideoExtractor
from scripts.miniature.moving_shapes import COLOURS, SHAPES, Segment, draw_frames
from video_search.reading import read_sampled
from video_search.vectors import Hit, Moment, Word

SETTINGS = {"sim_header": "wti", "feature_framerate": 1, "max_frames": 4, "slice_framepos": 2}
FPS = 8


def write_clip(path: Path, seed: int, seconds: int = 3, codec: str = "libx264", size: int = 96) -> Path:
    """Write a video with a moving shape in every second, each of another kind and colour."""
    colours, shapes = list(COLOURS), list(SHAPES)
    segments = [
        Segment(second, second + 1, colours[(seed + second) % 8], shapes[(seed + second) % 6], "left")
        for second in range(seconds)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.width, stream.height, stream.pix_fmt = size * 4 // 3, size, "yuv420p"
        for picture in draw_frames(segments, (stream.width, size), FPS, (seed,)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode())
    return path


def decode_after(path: str, gate: Path, started: Path | None = None) -> tuple[np.ndarray, np.ndarray, str]:
    """Note the id of this process in the file `started`, wait for the file `gate`, and return two frames."""
    if started is not None:
        partial_file = started.with_suffix(".part")
        partial_file.write_text(str(os.getpid()))
        partial_file.rename(started)
    while not gate.exists():
        time.sleep(0.01)
    return np.zeros((2, 3, 32, 32), np.uint8), np.array([0.0, 1.0]), ""


@dataclass
class FakeStore:
    """A store that lists the files of a folder."""

    folder: Path
    settings: dict = field(default_factory=lambda: dict(SETTINGS))

    def paths(self) -> Iterator[str]:
        return (str(file.relative_to(self.folder)) for file in sorted(self.folder.rglob("*")) if file.is_file())

    def files(self) -> dict:
        return {path: SimpleNamespace(reason="bad" if "bad" in path else "") for path in self.paths()}


class FakeSearch:
    """A search that finds all videos, ordered by name; the weights come from the lengths of words and from numbers."""

    def __init__(self, folder: Path):
        self.store = FakeStore(folder)
        self.listed = [path for path, state in self.store.files().items() if not state.reason]
        self.asked: list = []
        self.notice = ""
        reader = partial(read_sampled, extractor=RawVideoExtractor(size=32), max_frames=4, slice_framepos=2)
        self.encoder = SimpleNamespace(video_reader=lambda: reader)

    def refresh(self) -> None:
        """Do nothing: tests set `store` and `notice`."""

    def text(self, text: str, top: int):
        self.asked.append((text, top))
        return self.results(text.split(), top)

    def frames(self, frames, seconds, damage: str, asked: str, top: int):
        self.asked.append((frames.shape, list(seconds), top))
        return self.results([], top, is_video=True)

    def similar(self, path: str, top: int):
        self.asked.append((path, top))
        return self.results([], top, is_video=True)

    def results(self, names: list[str], top: int, is_video: bool = False):
        letters = sum(map(len, names))
        hits = []
        for rank, path in enumerate(self.listed[:top]):
            moments = tuple(Moment(float(i), (i + 1) / 6, (0.55, 0.5, 0.3)[i] - 0.01 * rank) for i in range(3))
            shares = [len(name) / letters for name in names]
            shares = shares if rank % 2 == 0 else shares[::-1]
            words = tuple(Word(n, w, w / 2, float(i % 3)) for i, (n, w) in enumerate(zip(names, shares, strict=True)))
            hits.append(Hit(path, 0.9 - 0.1 * rank, moments, words))
        query = SimpleNamespace(is_video=is_video)
        return SimpleNamespace(query=query, notice="", hits=hits, seconds=0.0123, scanned=len(self.listed))
