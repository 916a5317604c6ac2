"""Frames of a video file: decode, sample, choose, order, resize.

A file is read from its start to the last frame that matters.  Frames that are not kept are only decoded, never
converted, so memory is bounded by the frames that are returned, whatever the length of the video.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize

SLICE_FRAMEPOS = (0, 1, 2)
FRAME_ORDERS = (0, 1, 2)

# The first reading plans with the header's frame count, the second with the true one; the third is for files whose
# frames can be skipped but not all converted.
READINGS = 3


class VideoReadError(RuntimeError):
    """A video file gives no frames; `path` says which, `reason` why.

    A DataLoader re-raises the error of a worker with the worker's whole traceback as its only argument: `path` then
    holds that text, which ends with path and reason.
    """

    def __init__(self, path, reason: str = ""):
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.reason else str(self.path)


@dataclass(frozen=True)
class SampleGrid:
    """Frame numbers of whole-second sampling, in order: second s gives s * fps + k * (fps // rate) for k < rate.

    `fps` and `rate` are whole and `rate <= fps`; `limit` bounds the number of samples, None leaves them unbounded.
    """

    fps: int
    rate: int
    first_second: int = 0
    limit: int | None = None

    def position(self, sample: int) -> int:
        """Frame number of the given sample."""
        second, step = divmod(sample, self.rate)
        return (self.first_second + second) * self.fps + step * (self.fps // self.rate)

    def count(self, frame_count: int) -> int:
        """Number of samples in a video of `frame_count` frames."""
        seconds, rest = divmod(max(0, frame_count - self.first_second * self.fps), self.fps)
        samples = seconds * self.rate + min(self.rate, math.ceil(rest / (self.fps // self.rate)))
        return samples if self.limit is None else min(samples, self.limit)

    def end(self) -> float:
        """Number of frames after which no sample can follow."""
        return math.inf if self.limit is None else self.position(self.limit - 1) + 1


class RawVideoExtractor:
    """Reads `framerate` frames per second of video as squares of `size` pixels, as CLIP sees pictures."""

    def __init__(self, framerate: int = 1, size: int = 224):
        if framerate < 1 or framerate != int(framerate):
            raise ValueError(f"framerate must be a whole number of frames per second, at least 1; got {framerate}")
        if size < 1:
            raise ValueError(f"size must be at least 1 pixel, got {size}")
        self.framerate = int(framerate)
        self.size = int(size)

    def read_frames(
        self,
        path,
        max_frames: int,
        slice_framepos: int = 2,
        frame_order: int = 0,
        start_time: float | None = None,
        end_time: float | None = None,
        random_generator: np.random.Generator | None = None,
    ) -> np.ndarray:
        """Reads at most `max_frames` frames: uint8, RGB, `(L, 3, size, size)` with 1 <= L <= max_frames.

        Samples whole seconds (`SampleGrid`; the frame rate is cut to an integer, a `framerate` above it takes every
        frame), from the second that holds `start_time` to the one that begins at `end_time` or just after it,
        inclusive.  Each frame's shorter side is resized to `size` (bicubic, PIL) and its centre cut out.

        Args:
            slice_framepos: of more samples than `max_frames`, keep 0 the first, 1 the last, 2 evenly spread ones.
            frame_order: 0 as filmed, 1 reversed, 2 shuffled by `random_generator` (a fresh one where none is given).
            start_time, end_time: seconds; None is the start or the end of the video.

        Raises:
            ValueError: an argument is out of its range.
            VideoReadError: the file is missing or damaged, or has no frame in the time span.
        """
        _check_choice("slice_framepos", slice_framepos, SLICE_FRAMEPOS)
        _check_choice("frame_order", frame_order, FRAME_ORDERS)
        if max_frames < 1:
            raise ValueError(f"max_frames must be at least 1, got {max_frames}")
        start = 0 if start_time is None else start_time
        end = math.inf if end_time is None else end_time
        if not (0 <= start <= end and start < math.inf):
            raise ValueError(f"a time span needs 0 <= start_time <= end_time, got {start_time} to {end_time} seconds")

        try:
            frames = self._read(Path(path), max_frames, slice_framepos, math.floor(start), end)
        except cv2.error as error:
            raise VideoReadError(path, f"OpenCV failed: {error}") from error
        return order_frames(frames, frame_order, random_generator)

    def _read(self, path: Path, max_frames: int, slice_framepos: int, start: int, end: float) -> np.ndarray:
        fps, header_count, codec = _read_header(path)
        rate = min(self.framerate, fps)
        limit = None if end == math.inf else (math.ceil(end) - start + 1) * rate
        if slice_framepos == 0:
            limit = max_frames if limit is None else min(limit, max_frames)
        grid = SampleGrid(fps, rate, start, limit)

        # Headers lie, so the plan is made with the header's count, checked while reading, and made again if wrong.
        frame_count = header_count
        for _ in range(READINGS):
            sample_count = grid.count(frame_count)
            samples = choose_samples(sample_count, max_frames, slice_framepos)
            frames, frame_count = self._decode(path, [grid.position(sample) for sample in samples], grid.end())
            if frame_count == 0:
                raise VideoReadError(
                    path, f"no frame could be decoded; the header promises {header_count} frames, codec {codec}"
                )
            if grid.count(frame_count) == 0:
                raise VideoReadError(
                    path, f"no frame at or after second {start}: it ends after {frame_count} frames at {fps} per second"
                )
            if grid.count(frame_count) == sample_count:
                return np.stack(frames)
        raise VideoReadError(path, f"every reading gives another number of frames; the last gave {frame_count}")

    def _decode(self, path: Path, positions: list[int], end: float) -> tuple[list[np.ndarray], int]:
        """The frames at the increasing `positions`, and how many frames before frame `end` are readable."""
        frames = []
        capture = _open(path)
        try:
            number = 0
            while number < end and capture.grab():
                if len(frames) < len(positions) and number == positions[len(frames)]:
                    readable, picture = capture.retrieve()
                    if not readable:
                        break
                    frames.append(_resize_and_crop(picture, self.size))
                number += 1
        finally:
            capture.release()
        return frames, number


def order_frames(
    frames: np.ndarray, frame_order: int, random_generator: np.random.Generator | None = None
) -> np.ndarray:
    """Frames (L, ...) in order 0 as filmed, 1 reversed, 2 shuffled by `random_generator` (a fresh one for None)."""
    _check_choice("frame_order", frame_order, FRAME_ORDERS)
    if frame_order == 1:
        frames = frames[::-1]
    elif frame_order == 2:
        frames = frames[(random_generator or np.random.default_rng()).permutation(len(frames))]
    return np.ascontiguousarray(frames)


def choose_samples(sample_count: int, max_frames: int, slice_framepos: int) -> list[int]:
    """Which of `sample_count` samples are kept: all if they fit, else 0 the first, 1 the last, 2 evenly spread ones."""
    if sample_count <= max_frames:
        return list(range(sample_count))
    if slice_framepos == 0:
        return list(range(max_frames))
    if slice_framepos == 1:
        return list(range(sample_count - max_frames, sample_count))
    return np.linspace(0, sample_count - 1, max_frames, dtype=int).tolist()


def _check_choice(name: str, value: int, choices: tuple[int, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}; got {value!r}")


def _read_header(path: Path) -> tuple[int, int, str]:
    """Frames per second, cut to an integer but at least 1; the number of frames (0 is unknown); the codec's name."""
    capture = _open(path)
    try:
        fps = capture.get(cv2.CAP_PROP_FPS)
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        codec = int(capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(8, "little", signed=True)[:4]
    finally:
        capture.release()
    if not (math.isfinite(fps) and fps > 0):
        raise VideoReadError(path, f"the header gives a frame rate of {fps} frames per second")
    known_count = int(count) if math.isfinite(count) and count > 0 else 0
    return max(1, int(fps)), known_count, codec.decode("latin-1").strip("\0") or "unknown"


def _open(path: Path) -> cv2.VideoCapture:
    try:
        if path.is_dir() or path.stat().st_size == 0:
            raise VideoReadError(path, "this is a folder" if path.is_dir() else "the file is empty (0 bytes)")
        with path.open("rb"):
            pass
    except OSError as error:
        raise VideoReadError(path, error.strerror or str(error)) from error
    # Absolute, so that FFmpeg takes no colon for a protocol; one thread, because every DataLoader worker has its own.
    capture = cv2.VideoCapture(os.path.abspath(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    if not capture.isOpened():
        raise VideoReadError(path, "OpenCV finds no video stream in it: no video file, or one that is cut off")
    return capture


def _resize_and_crop(picture: np.ndarray, size: int) -> np.ndarray:
    """From OpenCV's `(height, width, 3)` BGR to `(3, size, size)` RGB."""
    # The channels are swapped without OpenCV: its thread pool does not survive the fork of a DataLoader worker.
    image = Image.fromarray(np.ascontiguousarray(picture[:, :, ::-1]))
    image = center_crop(resize(image, size, InterpolationMode.BICUBIC), size)
    return np.asarray(image).transpose(2, 0, 1)
