"""Read videos on all cores: frames with their seconds, and what is lost of damaged ones, or an `UnreadableFile`."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike

import numpy as np

from dataloaders.rawvideo_util import RawVideoExtractor, VideoReadError
from dataloaders.video_damage import record_damage
from dataloaders.worker_pool import ProcessDied, available_cores, run_tasks

PRELOAD = ("video_search.reading",)  # imported once for all processes


@dataclass(frozen=True)
class UnreadableFile:
    """A file without frames, and the reason; it takes the place of a video's vectors."""

    path: str
    reason: str
    is_transient: bool = False  # it could not be opened: a failing disk, or no permission


def read_videos(
    paths: Sequence[str | PathLike],
    extractor: RawVideoExtractor,
    max_frames: int,
    slice_framepos: int,
    processes: int,
    on_read: Callable[[str | PathLike, str], None] | None = None,
) -> Iterator[tuple[str | PathLike, tuple[np.ndarray, np.ndarray] | UnreadableFile]]:
    """Yield every path with its frames and their seconds as `read_video`, in the order of completion.

    `on_read` is called with the path of each video that was read and what is lost of it, empty for a whole one.

    A video that crashes its decoder becomes an `UnreadableFile`, except with 0 `processes`, which decode in this one.
    """
    read = partial(read_video, extractor=extractor, max_frames=max_frames, slice_framepos=slice_framepos)
    results = ((path, read(path)) for path in paths) if processes == 0 else run_tasks(read, paths, processes, PRELOAD)
    for path, result in results:
        if isinstance(result, ProcessDied):
            result = UnreadableFile(str(path), f"the process that read it was {result.reason}")
        if isinstance(result, UnreadableFile):
            yield path, result
            continue
        frames, seconds, damage = result
        if on_read is not None:
            on_read(path, damage)
        yield path, (frames, seconds)


def read_video(
    path: str | PathLike, extractor: RawVideoExtractor, max_frames: int, slice_framepos: int
) -> tuple[np.ndarray, np.ndarray, str] | UnreadableFile:
    """Return the frames, seconds and damage of `read_sampled`, or the reason for none."""
    try:
        return read_sampled(path, extractor, max_frames, slice_framepos)
    except VideoReadError as error:
        return UnreadableFile(str(path), error.reason, is_transient=isinstance(error.__cause__, OSError | MemoryError))


def read_sampled(
    path: str | PathLike, extractor: RawVideoExtractor, max_frames: int, slice_framepos: int
) -> tuple[np.ndarray, np.ndarray, str]:
    """Return the sampled frames (L,3,S,S) uint8 in order of time, their seconds (L,), and what is lost of the video.

    Raises: VideoReadError if there is no frame.
    """
    with record_damage() as notes:
        frames, seconds = extractor.read_frames_with_times(path, max_frames, slice_framepos)
    return frames, seconds, "; ".join(notes)


def add_num_workers(parser: argparse.ArgumentParser) -> None:
    """Add `--num_workers`, whose value `check_num_workers` checks."""
    parser.add_argument(
        "--num_workers", type=int, default=available_cores(),
        help="processes that decode, by default one per core; 0: in this process",
    )  # fmt: skip


def check_num_workers(processes: int) -> None:
    """Raise ValueError for a negative number."""
    if processes < 0:
        raise ValueError(f"--num_workers {processes} must not be negative")
