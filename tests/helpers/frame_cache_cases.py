"""For the tests of the frame cache: a fake extractor that logs its decodings, and reading in other processes."""

import logging
import zlib
from pathlib import Path

import numpy as np

from dataloaders.frame_cache import FrameCache


class FakeExtractor:
    """An extractor of noise that depends on the file's bytes and every setting; each decoding adds a line to `log`."""

    def __init__(self, log, size: int = 4, framerate: int = 1):
        self.log = Path(log)
        self.size = size
        self.framerate = framerate

    def read_frames(
        self, path, max_frames, slice_framepos=2, frame_order=0, start_time=None, end_time=None, random_generator=None
    ):
        assert frame_order == 0, "entries are stored as filmed"
        with self.log.open("a") as log:
            log.write(f"{path}\n")
        if max_frames < 1:
            raise ValueError(f"max_frames must be at least 1, got {max_frames}")
        return self.frames(path, max_frames, slice_framepos, start_time, end_time)

    def frames(self, path, max_frames, slice_framepos=2, start_time=None, end_time=None) -> np.ndarray:
        span = (0 if start_time is None else int(start_time), end_time and int(np.ceil(end_time)))
        what = (Path(path).read_bytes(), max_frames, slice_framepos, span, self.size, self.framerate)
        noise = np.random.default_rng(zlib.crc32(repr(what).encode()))
        return noise.integers(0, 256, (max_frames, 3, self.size, self.size), dtype=np.uint8)

    def decodings(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


def write_video(path: Path, content: bytes = b"a video") -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def files_in(folder) -> list[Path]:
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


def only_entry(cache: FrameCache) -> Path:
    (entry,) = files_in(cache.directory)
    return entry


def counts(cache: FrameCache) -> tuple[int, int, int]:
    return cache.hits, cache.misses, cache.rebuilt


def warnings_in(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def read_in_process(cache: FrameCache, paths: list[Path], barrier=None) -> None:
    """Read all paths several times; wrong frames end the process with an error."""
    if barrier is not None:
        barrier.wait()
    for path in paths * 3:
        np.testing.assert_array_equal(cache.read_frames(path, 2), cache.extractor.frames(path, 2))


def run_processes(processes) -> None:
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * len(processes)
