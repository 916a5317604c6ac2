"""Read frames of a video file: sample, choose, order, resize.

Other frames are never converted, and are decoded only if the chosen ones need them (`video_decoding`), so that memory
is bounded by the frames that are returned, whatever the length of the video.
"""

import io
from collections.abc import Callable

import av
import numpy as np
from PIL import Image

from dataloaders.frame_sampling import (
    FRAME_SAMPLINGS,
    SLICE_FRAMEPOS,
    FrameClock,
    FrameTimes,
    PublishedSampling,
    SampleGrid,
    TimeSampling,
    choose_samples,
    whole_seconds,
)
from dataloaders.media_files import MAX_PIXELS
from dataloaders.video_decoding import DoubtfulPackets, LateStop, VideoInfo, VideoReader, VideoReadError, probe

__all__ = [
    "FRAME_SAMPLINGS",
    "SLICE_FRAMEPOS",
    "RawVideoExtractor",
    "SampleGrid",
    "VideoInfo",
    "VideoReadError",
    "choose_samples",
    "encode_jpeg",
    "order_frames",
    "probe",
    "whole_seconds",
]

FRAME_ORDERS = (0, 1, 2)

# The first reading in order uses a frame count that may be wrong, the second the true one; the third is for files that
# are being written.
READINGS = 3


class RawVideoExtractor:
    """Reads `framerate` frames per second of video as squares of `size` pixels, the input of CLIP.

    `frame_sampling` is the rule that chooses them, one of `FRAME_SAMPLINGS`: see `dataloaders.frame_sampling`.
    """

    def __init__(self, framerate: int = 1, size: int = 224, frame_sampling: str = "published"):
        if framerate < 1 or framerate != int(framerate):
            raise ValueError(f"framerate must be a whole number of frames per second, at least 1; got {framerate}")
        if size < 1:
            raise ValueError(f"size must be at least 1 pixel, got {size}")
        check_choice("frame_sampling", frame_sampling, FRAME_SAMPLINGS)
        self.framerate = int(framerate)
        self.size = int(size)
        self.frame_sampling = frame_sampling

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

        Whole seconds are sampled, from the second of `start_time` to the first one at or after `end_time`, inclusive.
        Each frame's shorter side is resized to `size` (bicubic, PIL) and its centre cropped.

        Args:
            slice_framepos: if there are more samples than `max_frames`, keep 0 the first, 1 the last, 2 evenly spread
                ones.
            frame_order: 0 as filmed, 1 reversed, 2 shuffled by `random_generator` (a new one if None).
            start_time, end_time: seconds; None is the start or the end of the video.

        Raises:
            ValueError: an argument is out of its range.
            VideoReadError: the file is missing or damaged, or has no frame in the time span.
        """
        check_choice("frame_order", frame_order, FRAME_ORDERS)
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

        The times are presentation timestamps, whichever rule chooses the frames. Arguments and errors are those of
        `read_frames`.
        """
        check_choice("slice_framepos", slice_framepos, SLICE_FRAMEPOS)
        if max_frames < 1:
            raise ValueError(f"max_frames must be at least 1, got {max_frames}")
        return self._read(path, max_frames, slice_framepos, *whole_seconds(start_time, end_time))

    def _read(
        self, path, max_frames: int, slice_framepos: int, start: int, end: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        with VideoReader(path) as video:
            choice = self.framerate, max_frames, slice_framepos, start, end
            by_time = self.frame_sampling == "time"
            sampling = TimeSampling(*choice) if by_time else PublishedSampling(video.header.fps, *choice)
            try:
                video.read_packets(sampling.stop_rule())
                times = video.packet_times()
                frames = [self._square(video, frame) for frame in video.read_chosen(sampling.choose(times))]
            except DoubtfulPackets:
                estimate = FrameTimes(video.header.frames, np.empty(0))
                estimate = video.estimate_times(sampling.stop_rule()) if by_time else estimate
                frames, times = self._read_in_order(video, sampling, estimate)
        if times.count == 0:
            promise = f"the header promises {video.header.frames} frames, codec {video.header.codec}"
            if not video.header.width:
                promise += f", of unknown size; at most {MAX_PIXELS} pixels are decoded (8K video)"
            raise VideoReadError(video.path, f"no frame could be decoded; {promise}")
        if not frames:
            raise VideoReadError(video.path, f"no frame at or after second {start}: {sampling.describe_length(times)}")
        return np.stack(frames), times.seconds[sampling.choose(times)]

    def _read_in_order(
        self, video: VideoReader, sampling: PublishedSampling | TimeSampling, times: FrameTimes
    ) -> tuple[list[np.ndarray], FrameTimes]:
        """Return the chosen frames, and the times of all frames up to the last one that could be chosen.

        Headers and packets can be wrong: the expected `times` are checked while reading, and corrected for the next
        reading.
        """
        for _ in range(READINGS):
            numbers = sampling.choose(times)
            frames, times = self._take(video, numbers, sampling.stop_rule())
            if sampling.choose(times) == numbers:
                return frames, times
        raise VideoReadError(
            video.path, f"every reading gives another number of frames; the last one gave {times.count}"
        )

    def _take(
        self, video: VideoReader, numbers: list[int], is_enough: Callable[[float], bool]
    ) -> tuple[list[np.ndarray], FrameTimes]:
        """Return the frames of the given increasing numbers, and the times of all frames that were decoded."""
        clock, stop = FrameClock(1 / video.header.fps), LateStop(is_enough)
        frames: list[np.ndarray] = []
        tick = float(video.stream.time_base)
        for number, frame in enumerate(video.read_in_order()):
            if len(frames) < len(numbers) and number == numbers[len(frames)]:
                frames.append(self._square(video, frame))
            # The last frames of a decoder have no time base of their own.
            second = None if frame.pts is None else frame.pts * tick
            if stop.is_due(clock.add(second, (frame.duration or 0) * tick)):
                break
        return frames, clock.times()

    def _square(self, video: VideoReader, frame: av.VideoFrame) -> np.ndarray:
        return resize_and_crop(video.to_image(frame), self.size)


def order_frames(
    frames: np.ndarray, frame_order: int, random_generator: np.random.Generator | None = None
) -> np.ndarray:
    """Return the frames `(L, ...)`, contiguous, in the order `frame_order`.

    0 is as filmed, 1 reversed, 2 shuffled by `random_generator` (a new one if None).

    Raises:
        ValueError: `frame_order` is not one of these.
    """
    check_choice("frame_order", frame_order, FRAME_ORDERS)
    if frame_order == 1:
        frames = frames[::-1]
    elif frame_order == 2:
        random_generator = random_generator or np.random.default_rng()
        frames = frames[random_generator.permutation(len(frames))]
    return np.ascontiguousarray(frames)


def encode_jpeg(frame: np.ndarray, **settings) -> bytes:
    """Return a JPEG file of a frame, uint8 RGB `(3, H, W)`; settings such as `quality` are those of Pillow's writer."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frame.transpose(1, 2, 0))).save(file, "JPEG", **settings)
    return file.getvalue()


def check_choice(name: str, value: int, choices: tuple[int, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}; got {value!r}")


def resize_and_crop(image: Image.Image, size: int) -> np.ndarray:
    """Return an image as `(3, size, size)`: the shorter side is resized to `size`, the centre cropped."""
    shorter = min(image.size)
    width, height = (size * side // shorter for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    # The two passes of a bicubic resize, separately: the second skips the columns that are cropped.
    image = image.resize((width, image.height), Image.Resampling.BICUBIC)
    image = image.crop((left, 0, left + size, image.height)).resize((size, height), Image.Resampling.BICUBIC)
    return np.asarray(image.crop((0, top, size, top + size))).transpose(2, 0, 1)
