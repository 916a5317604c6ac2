"""Make small copies of all videos of a folder: `python -m scripts.compress_videos --input_root DIR --output_root DIR`

Each copy is an H.264 mp4 of 3 frames per second without sound, its shorter side 224 pixels, in the same subfolder and
with the same name. A copy replaces an older one only after it has been read back. The same command continues after an
interruption: complete copies with the same settings are kept.
"""

import argparse
import heapq
import os
import socket
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
from PIL import Image
from tqdm import tqdm

from dataloaders.frame_cache import remove_abandoned
from dataloaders.media_files import open_media
from dataloaders.rawvideo_util import RawVideoExtractor, VideoReadError
from dataloaders.unreadable import read_reasons, write_reasons
from dataloaders.video_damage import describe_early_end, promised_end, record_damage
from dataloaders.video_decoding import VideoReader
from dataloaders.video_files import (
    BESIDE_A_FILM,
    EXCLUDE_HELP,
    MAIN_EXTENSIONS,
    NOT_A_VIDEO,
    FolderWalk,
    describe_passed_over,
    first_names,
    is_video,
    require_path,
    walk_folder,
)
from dataloaders.worker_pool import ProcessDied, available_cores, run_tasks
from modules.standard_streams import open_standard_streams, printable

FAILURES_FILE = "compress_failures.csv"
DAMAGED_FILE = "compress_damaged.csv"
OUTCOMES = ("compressed", "kept", "failed")
PRELOAD = ("av", "dataloaders.rawvideo_util")  # the slow imports of this file
CRF = 18  # x264's scale of quality: no visible loss, and the files are small enough
REORDERED_FRAMES = 16  # no H.264 or HEVC stream reorders more frames
TIME_TOLERANCE = 0.002  # seconds; some containers store times in whole milliseconds
LONGEST_FRAME = 600.0  # seconds; times that jump farther are damaged, and would fill the disk with one frame
UNFINISHED_SUFFIX = ".unfinished"

Job = tuple[Path, Path]
"""A video and its copy."""


def find_jobs(input_root: Path, output_root: Path, walk: FolderWalk | None = None) -> list[Job]:
    """Return every video below `input_root` with the path of its copy, sorted.

    `walk` is that of `input_root`, if it was made before; what is no original is added to its `passed_over`.

    Raises:
        FileNotFoundError: `input_root` is not a folder.
        ValueError: one folder is inside the other, no video is found, or two videos would share a copy.
    """
    require_path(input_root, "--input_root", folder=True)
    here, there = input_root.resolve(), output_root.resolve()
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise ValueError(
            f"--input_root {input_root} and --output_root {output_root} must lie apart: copies would be taken for "
            "originals, or replace them"
        )
    walk = walk or walk_folder(input_root)
    sources: dict[str, list[str]] = {}
    for path, entry in walk.files.items():
        # DiDeMo's list has names that end in a bare dot.
        if path.endswith(".") or is_video(entry):
            sources.setdefault(f"{os.path.splitext(path)[0]}.mp4", []).append(path)
        else:
            walk.passed_over[path] = NOT_A_VIDEO
    if not sources:
        passed_over = describe_passed_over(walk.passed_over)
        raise ValueError(f"no video below {input_root} (--input_root)" + (f"; {passed_over}" if passed_over else ""))
    for target, paths in sources.items():
        films = [path for path in paths if os.path.splitext(path)[1].lower() in (*MAIN_EXTENSIONS, ".")]
        if films and len(films) < len(paths):
            walk.passed_over |= dict.fromkeys(set(paths) - set(films), BESIDE_A_FILM)
            sources[target] = films
    shared = [
        " and ".join(str(input_root / path) for path in sorted(paths)) for paths in sources.values() if len(paths) > 1
    ]
    if shared:
        raise ValueError(f"{len(shared)} copies would have more than one original; keep one of {first_names(shared)}")
    return sorted((input_root / paths[0], output_root / target) for target, paths in sources.items())


def compress_or_keep(job: Job, fps: int, size: int) -> tuple[str, str]:
    """Make the copy of `job` (original, copy) unless it exists; return one of `OUTCOMES` and a failure's reason.

    The reason of a copy that was made is what its original has lost: frames around it are shown longer.
    """
    source, target = job
    try:
        if is_finished(source, target, fps, size):
            return "kept", ""
        return "compressed", compress_video(source, target, fps, size)
    except VideoReadError as error:
        return "failed", error.reason
    except (av.FFmpegError, OSError, ValueError, MemoryError) as error:
        return "failed", getattr(error, "strerror", None) or str(error) or type(error).__name__


def is_finished(source: Path, target: Path, fps: int, size: int) -> bool:
    """Return whether `target` is a complete copy of `source` with these settings."""
    if not target.is_file():
        return False
    try:
        with open_media(target) as container:  # an mp4's header is at its end: an incomplete file has none
            return container.metadata.get("comment") == describe_copy(source, fps, size)
    except av.FFmpegError:
        return False


def describe_copy(source: Path, fps: int, size: int) -> str:
    """Return the comment in a copy: its settings, and the size and time that identify its original."""
    status = source.stat()
    original = f"original of {status.st_size} bytes, modified at {status.st_mtime_ns} ns"
    return f"compress_videos: fps {fps}, size {size}, crf {CRF}, {original}"


def compress_video(source: Path, target: Path, fps: int, size: int) -> str:
    """Write the copy `target` of `source`, complete and checked, or not at all; return what `source` has lost.

    Raises:
        VideoReadError: `source` is unreadable or ends early, or the copy does not read back as it was written.
        av.FFmpegError, OSError: reading or writing failed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # Another run may be making the same copy. 40 letters of up to 4 bytes keep the name below the limit of 255 bytes.
    writer = f"{socket.gethostname()}.{os.getpid()}"
    unfinished = target.with_name(f".{target.stem[:40]}.{writer}{UNFINISHED_SUFFIX}")
    try:
        with record_damage() as notes:
            frame_count = write_copy(source, unfinished, fps, size)
        check_copy(unfinished, frame_count, fps)
        os.replace(unfinished, target)
        return "; ".join(notes)
    finally:
        unfinished.unlink(missing_ok=True)


def write_copy(source: Path, unfinished: Path, fps: int, size: int) -> int:
    """Encode the frames of `source` into `unfinished`; return their number."""
    with VideoReader(source) as video, av.open(os.path.abspath(unfinished), "w", format="mp4") as output:
        output.metadata["comment"] = describe_copy(source, fps, size)
        stream = output.add_stream("libx264", rate=fps, options={"crf": str(CRF)})
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # every core has a process of its own
        frame_count = 0
        for frame in frames_on_screen(video, fps):
            image = video.to_image(frame)
            if frame_count == 0:
                stream.width, stream.height = copy_size(*image.size, size)
            image = image.resize((stream.width, stream.height), Image.Resampling.BICUBIC)
            copied = av.VideoFrame.from_ndarray(np.asarray(image), format="rgb24")
            copied.pts, copied.time_base = frame_count, Fraction(1, fps)
            output.mux(stream.encode(copied))
            frame_count += 1
        output.mux(stream.encode())
    return frame_count


def frames_on_screen(video: VideoReader, fps: int) -> Iterator[av.VideoFrame]:
    """Yield the frame that is shown 0, 1/fps, 2/fps, ... seconds after the first one, until the end; at least one.

    Raises:
        VideoReadError: no frame can be decoded, or the video ends a second or more too early.
    """
    interval = min(1 / video.header.fps, LONGEST_FRAME)
    shown, start, last, count = None, 0.0, 0.0, 0
    for second, frame in timed_frames(video.read_in_order(), interval):
        if shown is None:
            start = last = second
        if not 0 <= second - last <= LONGEST_FRAME:
            raise VideoReadError(video.path, f"times jump by {second - last:.1f} after {last - start:.1f} seconds")
        while shown is not None and count / fps < second - start - TIME_TOLERANCE:
            yield shown
            count += 1
        shown, last = frame, second
    if shown is None:
        raise VideoReadError(video.path, "no frame could be decoded")
    end = last + interval
    if early_end := describe_early_end(end, promised_end(video, start)):
        raise VideoReadError(video.path, early_end)
    while count == 0 or count / fps < end - start - TIME_TOLERANCE:
        yield shown
        count += 1


def timed_frames(frames: Iterable[av.VideoFrame], interval: float) -> Iterator[tuple[float, av.VideoFrame]]:
    """Yield the frames with their times in seconds; a frame without a time follows the last one after `interval`.

    The frames are in the order of presentation. In AVI files some have each other's times, which sorting corrects.
    """
    times: list[float] = []
    waiting: deque[av.VideoFrame] = deque()
    second = -interval
    for frame in frames:
        second = second + interval if frame.time is None else frame.time
        heapq.heappush(times, second)
        waiting.append(frame)
        if len(waiting) > REORDERED_FRAMES:
            yield heapq.heappop(times), waiting.popleft()
    while waiting:
        yield heapq.heappop(times), waiting.popleft()


def copy_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Return width and height of the copy: the shorter side is `size`, the longer one in proportion and even for H.264.

    >>> copy_size(1280, 720, 224), copy_size(240, 320, 224)
    ((398, 224), (224, 298))
    """
    longer = 2 * round(size * max(width, height) / min(width, height) / 2)
    return (longer, size) if width >= height else (size, longer)


def check_copy(path: Path, frame_count: int, fps: int) -> None:
    """Raise VideoReadError unless the project's reader finds `frame_count` frames at `fps` per second in `path`."""
    with open_media(path) as container:
        rate = container.streams.video[0].average_rate
    # At this rate every frame is a sample; one more is requested, to notice a surplus.
    found = len(RawVideoExtractor(fps, size=1).read_frames(path, frame_count + 1))
    if (found, rate) != (frame_count, fps):
        raise VideoReadError(
            path, f"the copy reads as {found} frames at {rate} per second, not {frame_count} at {fps}: it is not kept"
        )


def compress_all(jobs: list[Job], fps: int, size: int, processes: int, damaged_file: Path) -> dict[str, list]:
    """Make all copies; return the originals by outcome (`OUTCOMES`), with the reasons of failures, sorted.

    What originals have lost is the reason of their copies. It is kept in `damaged_file`, row by row, for later runs.
    """
    known = read_reasons(damaged_file)
    outcomes: dict[str, list[tuple[Path, str]]] = {outcome: [] for outcome in OUTCOMES}
    results = run_tasks(partial(compress_or_keep, fps=fps, size=size), jobs, processes, PRELOAD)
    for (source, target), result in tqdm(results, total=len(jobs), unit="video", desc="compress"):
        if isinstance(result, ProcessDied):
            result = "failed", f"the process that compressed it was {result.reason}"
        outcome, reason = result
        if outcome == "failed" and target.is_file():
            reason += f"; {target} is left as it is, a copy with other settings or of another original"
        if outcome == "kept":
            reason = known.get(str(source), "")
        elif outcome == "compressed" and reason:
            known[str(source)] = reason
            write_reasons(damaged_file, known.items())
        outcomes[outcome].append((source, reason))
    return {outcome: sorted(sources) for outcome, sources in outcomes.items()}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--input_root", type=Path, required=True, help="folder of the videos, searched recursively")
    parser.add_argument("--output_root", type=Path, required=True, help="folder of the copies")
    parser.add_argument("--exclude", action="append", default=[], metavar="PATTERN", help=EXCLUDE_HELP)
    parser.add_argument("--fps", type=int, default=3, help="frames per second of the copies")
    parser.add_argument("--size", type=int, default=224, help="pixels of the shorter side, an even number")
    parser.add_argument("--num_workers", type=int, default=available_cores(), help="processes")
    return parser


def main(argv: list[str] | None = None) -> None:
    open_standard_streams()
    args = build_parser().parse_args(argv)
    try:
        if args.fps < 1 or args.num_workers < 1:
            raise ValueError(f"--fps {args.fps} and --num_workers {args.num_workers} must be at least 1")
        if args.size < 2 or args.size % 2:
            raise ValueError(f"--size {args.size} must be even, as H.264 needs it, and at least 2")
        walk = walk_folder(require_path(args.input_root, "--input_root", folder=True), args.exclude)
        jobs = find_jobs(args.input_root, args.output_root, walk)
        args.output_root.mkdir(parents=True, exist_ok=True)
        for folder in {target.parent for _, target in jobs}:
            remove_abandoned(folder, f".*{UNFINISHED_SUFFIX}")
        damaged_file = args.output_root / DAMAGED_FILE
        outcomes = compress_all(jobs, args.fps, args.size, args.num_workers, damaged_file)
        outcomes["failed"] += [
            (args.input_root / path, f"it cannot be read: {error.strerror}") for path, error in walk.errors.items()
        ]
        write_reasons(args.output_root / FAILURES_FILE, outcomes["failed"])
        damaged = sorted(row for outcome in ("compressed", "kept") for row in outcomes[outcome] if row[1])
        if damaged:
            write_reasons(damaged_file, damaged)
        else:
            damaged_file.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        sys.exit(printable(f"compress_videos: {error}"))
    except KeyboardInterrupt:
        sys.exit("compress_videos: interrupted; the same command continues from here")
    if walk.passed_over:
        print(printable(describe_passed_over(walk.passed_over)))
    print(", ".join(f"{len(sources)} {outcome}" for outcome, sources in outcomes.items()))
    for source, reason in [*damaged, *outcomes["failed"]]:
        print(printable(f"{source}: {reason}"), file=sys.stderr)
    if damaged:
        print(printable(f"compress_videos: {len(damaged)} originals are damaged; see {damaged_file}"), file=sys.stderr)
    if outcomes["failed"]:
        sys.exit(f"compress_videos: {len(outcomes['failed'])} failed; see {args.output_root / FAILURES_FILE}")


if __name__ == "__main__":
    main()
