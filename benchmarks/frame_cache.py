"""What a sample costs from the frame cache, cold and warm, beside decoding it; bytes per video; the error of jpeg.

    python -m benchmarks.frame_cache [--clips FOLDER] [--repeats 7] [--folder DISK] [--output FILE.md]

All contestants take turns on the same file in one run; a figure is the median of its repeats.  A clip has COPIES exact
entries (under as many names), which are read one after the other, as in training, so that none comes from the
processor's own caches.

    decode       `RawVideoExtractor.read_frames`, the video file in the page cache
    seek         CLIP4Clip's way: seek to every second, make each frame normalised floats, then choose
    cold         first read of an exact entry in a process: the entry's pages are dropped, its checksum is computed
    warm         later read of an exact entry: its pages are in main memory, its checksum is known
    warm + copy  the same, and the frames copied into the array of a batch, so that every byte is touched
    copy alone   the same bytes from arrays in main memory: what no cache that gives exact frames can go below
    jpeg         warm + copy of a jpeg entry

Pages are dropped by writing the entry to the disk (fsync) and `posix_fadvise(DONTNEED)`; that they are gone is checked.
What a disk or a hypervisor keeps in memory of its own cannot be dropped from here.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.decode import GENERATED_FPS, read_by_seeking, write_moving_clip
from benchmarks.reporting import header, publish
from dataloaders.frame_cache import FrameCache
from dataloaders.rawvideo_util import RawVideoExtractor

COLD_GOAL, WARM_GOAL = 50, 1000
COPIES = 32  # entries of each clip, read one after the other: more bytes than the processor's own caches hold


@dataclass(frozen=True)
class Result:
    """Medians in seconds, bytes on disk, and the mean absolute error of jpeg frames in levels of 0 to 255."""

    name: str
    frames: int
    seek: float
    decode: float
    cold: float
    warm: float
    warm_copy: float
    copy: float
    jpeg: float
    exact_bytes: int
    jpeg_bytes: int
    jpeg_error: float


def drop_pages(paths: list[Path]) -> None:
    """Makes the next reads of the files come from the disk; OSError where their file system keeps them in memory."""
    for path in paths:
        with path.open("rb+") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if is_in_memory(path):
            raise OSError(f"{path} stays in memory, the file system cannot drop it: choose another with --folder")


def is_in_memory(path: Path) -> bool:
    """True where the first bytes of the file can be read without waiting for the disk."""
    with path.open("rb", buffering=0) as file:
        try:
            return os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT) == 1
        except BlockingIOError:
            return False


def seconds_of(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


class Decoded:
    """An extractor that has decoded already: it fills a cache at once."""

    size, framerate = 224, 1

    def __init__(self, frames: np.ndarray):
        self.frames = frames

    def read_frames(self, *_, **__) -> np.ndarray:
        return self.frames


def measure(path: Path, folder: Path, max_frames: int, repeats: int) -> Result:
    """All contestants on one clip, in turns; `folder` is empty and takes the entries."""
    extractor = RawVideoExtractor()
    decoded = extractor.read_frames(path, max_frames)
    exact, jpeg = (FrameCache(folder / name, Decoded(decoded), name) for name in ("exact", "jpeg"))
    batch = np.zeros((COPIES, max_frames, *decoded.shape[1:]), dtype=np.uint8)
    copies = [folder / f"{number}_{path.name}" for number in range(COPIES)]
    for copy in copies:
        copy.symlink_to(path.resolve())
        for _ in range(2):  # stored first, then read and found right
            exact.read_frames(copy, max_frames)
    jpeg_frames = jpeg.read_frames(path, max_frames)
    exact_entries, (jpeg_entry,) = (sorted(Path(cache.directory).glob("??/*")) for cache in (exact, jpeg))

    arrays = [exact.read_frames(copy, max_frames) for copy in copies]

    def read_cold():
        cache = FrameCache(exact.directory, extractor)
        for copy in copies:
            cache.read_frames(copy, max_frames)

    def read_warm():
        for copy in copies:
            exact.read_frames(copy, max_frames)

    def copy_to_batch(cache: FrameCache, paths: list[Path]):
        for row, copy in zip(batch, paths, strict=False):
            row[: len(decoded)] = cache.read_frames(copy, max_frames)

    def copy_alone():
        for row, frames in zip(batch, arrays, strict=True):
            row[: len(decoded)] = frames

    times = {name: [] for name in ("seek", "decode", "cold", "warm", "warm_copy", "copy", "jpeg")}
    for _ in range(repeats):
        times["seek"].append(seconds_of(lambda: read_by_seeking(path)))
        times["decode"].append(seconds_of(lambda: extractor.read_frames(path, max_frames)))
        drop_pages(exact_entries)
        times["cold"].append(seconds_of(read_cold) / COPIES)
        times["warm"].append(seconds_of(read_warm) / COPIES)
        times["warm_copy"].append(seconds_of(lambda: copy_to_batch(exact, copies)) / COPIES)
        times["copy"].append(seconds_of(copy_alone) / COPIES)
        times["jpeg"].append(seconds_of(lambda: copy_to_batch(jpeg, [path])))
    return Result(
        name=path.name,
        frames=len(decoded),
        **{name: statistics.median(values) for name, values in times.items()},
        exact_bytes=exact_entries[0].stat().st_size,
        jpeg_bytes=jpeg_entry.stat().st_size,
        jpeg_error=float(np.abs(jpeg_frames.astype(np.int16) - decoded).mean()),
    )


def table(results: list[Result]) -> list[str]:
    """Markdown: one row per clip, and what became of the goals."""
    lines = [
        "| clip | V | seek ms | decode ms | cold ms | warm µs | warm + copy µs | copy alone µs | jpeg ms "
        "| exact kB | jpeg kB | jpeg error |",
        "|---|" + "---:|" * 11,
    ]
    lines += [
        f"| {one.name} | {one.frames} | {one.seek * 1e3:.1f} | {one.decode * 1e3:.1f} | {one.cold * 1e3:.2f} "
        f"| {one.warm * 1e6:.0f} | {one.warm_copy * 1e6:.0f} | {one.copy * 1e6:.0f} | {one.jpeg * 1e3:.2f} "
        f"| {one.exact_bytes / 1e3:.0f} | {one.jpeg_bytes / 1e3:.0f} | {one.jpeg_error:.2f} |"
        for one in results
    ]
    lines += ["", "| ratio | median | lowest | highest | goal | clips that reach it |", "|---|" + "---:|" * 5]
    goals = {"cold": COLD_GOAL, "warm": WARM_GOAL, "warm_copy": WARM_GOAL, "copy": None, "jpeg": None}
    for baseline in ("decode", "seek"):
        for name, goal in goals.items():
            ratios = [getattr(one, baseline) / getattr(one, name) for one in results]
            reached = "" if goal is None else f"{sum(ratio >= goal for ratio in ratios)} of {len(ratios)}"
            lines.append(
                f"| {baseline} / {name} | {statistics.median(ratios):.0f} | {min(ratios):.0f} | {max(ratios):.0f} "
                f"| {goal or ''} | {reached} |"
            )
    return lines


def main(arguments: list[str] | None = None) -> list[Result]:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    real_clips = Path(__file__).resolve().parents[2] / "shared" / "data" / "real_clips" / "videos"
    parser.add_argument("--clips", type=Path, default=real_clips, help="folder of clips; may be absent")
    parser.add_argument("--seconds", type=int, default=15, help="length of the generated clip")
    parser.add_argument("--max_frames", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where the cache lies during the run; default: a temporary folder")
    parser.add_argument("--output", type=Path, help="Markdown file to write the report to as well")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        generated = Path(folder, f"generated_{args.seconds}s_320x240.mp4")
        write_moving_clip(generated, args.seconds, 320, 240, GENERATED_FPS)
        paths = [generated, *(sorted(args.clips.iterdir()) if args.clips.is_dir() else [])]
        progress = tqdm(paths, unit="clip", disable=None)
        results = []
        for path in progress:
            with tempfile.TemporaryDirectory(dir=folder) as entries:
                results.append(measure(path, Path(entries), args.max_frames, args.repeats))
    publish("\n".join([header("frame_cache", arguments), *table(results)]), args.output)
    return results


if __name__ == "__main__":
    main()
