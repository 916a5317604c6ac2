"""Read frames of a video file: sample, choose, order, resize.

Other frames are never converted, and are decoded only if the chosen ones need them (`video_decoding`), so that memory
is bounded by the frames that are returned, whatever the length of the video.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import av
import numpy as np
from PIL import Image

from dataloaders.video_decoding import DoubtfulPackets, VideoInfo, VideoReader, VideoReadError, probe

__all__ = [
    "RawVideoExtractor",
    "SampleGrid",
    "VideoInfo",
    "VideoReadError",
    "choose_samples",
    "encode_jpeg",
    "order_frames",
    "probe",
]

SLICE_FRAMEPOS = (0, 1, 2)
FRAME_ORDERS = (0, 1, 2)

# The first reading in order uses a frame count that may be wrong, the second the true one; the third is for files that
# are being written.
READINGS = 3


@dataclass(frozen=True)
class SampleGrid:
    """Frame numbers of whole-second sampling, in order: s * fps + k * (fps // rate) for second s and k < rate.

    `fps` and `rate` are whole and `rate <= fps`; `limit` is the greatest number of samples, None for no limit.
    """

    fps: int
    rate: int
    first_second: int = 0
    limit: int | None = None

    def position(self, sample: int) -> int:
        """Return the frame number of a sample."""
        second, step = divmod(sample, self.rate)
        return (self.first_second + second) * self.fps + step * (self.fps // self.rate)

    def count(self, frame_count: int) -> int:
        """Return the number of samples in a video of `frame_count` frames."""
        seconds, rest = divmod(max(0, frame_count - self.first_second * self.fps), self.fps)
        samples = seconds * self.rate + min(self.rate, math.ceil(rest / (self.fps // self.rate)))
        return samples if self.limit is None else min(samples, self.limit)

    def end(self) -> float:
        """Return the number of frames after which no sample follows."""
        return math.inf if self.limit is None else self.position(self.limit - 1) + 1


class RawVideoExtractor:
    """Reads `framerate` frames per second of video as squares of `size` pixels, the input of CLIP."""

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
        """Read at most `max_frames` frames: uint8, RGB, `(L, 3, size, size)` with 1 <= L <= max_frames.

        Whole seconds are sampled (`SampleGrid`; the frame rate is truncated to an integer, and a `framerate` above it
        takes every frame), from the second of `start_time` to the first one at or after `end_time`, inclusive. Each
        frame's shorter side is resized to `size` (bicubic, PIL) and its centre cropped.

        Args:
            slice_framepos: if there are more samples than `max_frames`, keep 0 the first, 1 the last, 2 evenly spread
                ones.
            frame_order: 0 as filmed, 1 reversed, 2 shuffled by `random_generator` (a new one if None).
            start_time, end_time: seconds; None is the start or the end of the video.

        Raises:
            ValueError: an argument is out of its range.
            VideoReadError: the file is missing or damaged, or has no frame in the time span.
        """
        _check_choice("frame_order", frame_order, FRAME_ORDERS)
        frames, _ = self.read_frames_with_times(path, max_frames, slice_framepos, start_time, end_time)
        return order_frames(frames, frame_order, random_generator)

    def read_frames_with_times(
        self,
        path,
        max_frames: int,
        slice_framepos: int = 2,
        start_time: float | None = None,
        end_time: float | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the frames of `read_frames` as filmed and their times: float64 `(L,)`, seconds since the first frame.

        A frame's time is its number divided by the header's frame rate, which is not truncated here. Arguments and
        errors are those of `read_frames`.
        """
        _check_choice("slice_framepos", slice_framepos, SLICE_FRAMEPOS)
        if max_frames < 1:
            raise ValueError(f"max_frames must be at least 1, got {max_frames}")
        return self._read(path, max_frames, slice_framepos, *whole_seconds(start_time, end_time))

    def _read(
        self, path, max_frames: int, slice_framepos: int, start: int, end: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        with VideoReader(path) as video:
            fps = max(1, int(video.header.fps))
            rate = min(self.framerate, fps)
            limit = None if end is None else (end - start + 1) * rate
            if slice_framepos == 0:
                limit = max_frames if limit is None else min(limit, max_frames)
            grid = SampleGrid(fps, rate, start, limit)

            def choose(frame_count: int) -> list[int]:
                samples = choose_samples(grid.count(frame_count), max_frames, slice_framepos)
                return [grid.position(sample) for sample in samples]

            try:
                frame_count = video.read_packets(grid.end())
                frames = [self._square(video, frame) for frame in video.read_chosen(choose(frame_count))]
            except DoubtfulPackets:
                frames, frame_count = self._read_in_order(video, grid, choose)
        if frame_count == 0:
            promise = f"the header promises {video.header.frames} frames, codec {video.header.codec}"
            raise VideoReadError(video.path, f"no frame could be decoded; {promise}")
        if not frames:
            reason = f"no frame at or after second {start}: it ends after {frame_count} frames at {fps} per second"
            raise VideoReadError(video.path, reason)
        return np.stack(frames), np.array(choose(frame_count)) / video.header.fps

    def _read_in_order(
        self, video: VideoReader, grid: SampleGrid, choose: Callable[[int], list[int]]
    ) -> tuple[list[np.ndarray], int]:
        """Return the frames that `choose` takes, and the number of frames before the grid's end."""
        # Headers can be wrong: their frame count is checked while reading, and corrected for the next reading.
        frame_count = video.header.frames
        for _ in range(READINGS):
            sample_count = grid.count(frame_count)
            positions = choose(frame_count)
            frames = []
            frame_count = 0
            for frame in video.read_in_order():
                if len(frames) < len(positions) and frame_count == positions[len(frames)]:
                    frames.append(self._square(video, frame))
                frame_count += 1
                if frame_count >= grid.end():
                    break
            if grid.count(frame_count) == sample_count:
                return frames, frame_count
        raise VideoReadError(
            video.path, f"every reading gives another number of frames; the last one gave {frame_count}"
        )

    def _square(self, video: VideoReader, frame: av.VideoFrame) -> np.ndarray:
        return _resize_and_crop(video.to_image(frame), self.size)


def whole_seconds(start_time: float | None, end_time: float | None) -> tuple[int, int | None]:
    """Return the first and the last second that are sampled of a time span; None is the end of the video.

    Raises:
        ValueError: the span is not valid.
    """
    start = 0 if start_time is None else start_time
    end = math.inf if end_time is None else end_time
    if not (0 <= start <= end and start < math.inf):
        raise ValueError(f"a time span needs 0 <= start_time <= end_time, got {start_time} to {end_time} seconds")
    return math.floor(start), None if end == math.inf else math.ceil(end)


def order_frames(
    frames: np.ndarray, frame_order: int, random_generator: np.random.Generator | None = None
) -> np.ndarray:
    """Return the frames `(L, ...)`, contiguous, in the order `frame_order`.

    0 is as filmed, 1 reversed, 2 shuffled by `random_generator` (a new one if None).

    Raises:
        ValueError: `frame_order` is not one of these.
    """
    _check_choice("frame_order", frame_order, FRAME_ORDERS)
    if frame_order == 1:
        frames = frames[::-1]
    elif frame_order == 2:
        random_generator = random_generator or np.random.default_rng()
        frames = frames[random_generator.permutation(len(frames))]
    return np.ascontiguousarray(frames)


def choose_samples(sample_count: int, max_frames: int, slice_framepos: int) -> list[int]:
    """Return the samples that are kept: all if they fit, else 0 the first, 1 the last, 2 evenly spread ones."""
    if sample_count <= max_frames:
        return list(range(sample_count))
    if slice_framepos == 0:
        return list(range(max_frames))
    if slice_framepos == 1:
        return list(range(sample_count - max_frames, sample_count))
    return np.linspace(0, sample_count - 1, max_frames, dtype=int).tolist()


def encode_jpeg(frame: np.ndarray, **settings) -> bytes:
    """Return a JPEG file of a frame, uint8 RGB `(3, H, W)`; settings such as `quality` are those of Pillow's writer."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frame.transpose(1, 2, 0))).save(file, "JPEG", **settings)
    return file.getvalue()


def _check_choice(name: str, value: int, choices: tuple[int, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}; got {value!r}")


def _resize_and_crop(image: Image.Image, size: int) -> np.ndarray:
    """Return an image as `(3, size, size)`: the shorter side is resized to `size`, the centre cropped."""
    shorter = min(image.size)
    width, height = (size * side // shorter for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    # The two passes of a bicubic resize, separately: the second skips the columns that are cropped.
    image = image.resize((width, image.height), Image.Resampling.BICUBIC)
    image = image.crop((left, 0, left + size, image.height)).resize((size, height), Image.Resampling.BICUBIC)
    return np.asarray(image.crop((0, top, size, top + size))).transpose(2, 0, 1)
