"""Choice of frames: CLIP4Clip's rule by frame numbers ("published"), and the rule by presentation timestamps ("time").

Both rules take the points s, s + 1/f, ... s + (f-1)/f of every whole second s of a span, f times per second. The
published rule turns a point into a frame number by the header's frame rate, cut to an integer. The rule by time takes
the frame that is shown at the point, and every frame once: a frame that is shown for an hour is one sample. The rules
agree if frames come at a constant rate, a whole number per second that f divides or is a multiple of.
"""

import itertools
import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

FRAME_SAMPLINGS = ("published", "time")
SLICE_FRAMEPOS = (0, 1, 2)
# Seconds: WebM, Matroska and FLV round timestamps to milliseconds. Less than one, because frame 30 at 29.97 frames per
# second is shown at 1.001.
CLOCK_TOLERANCE = 0.0009
# H.264 and HEVC hold back at most 16 frames: a larger step of the timestamps, or one of a second, is a jump.
MAX_HELD_BACK = 16
LEAST_JUMP = 1.0


@dataclass(frozen=True)
class FrameTimes:
    """When frames are shown: `seconds` (N,) since the first one, increasing, and `end`, when the last one is over.

    `count` is N, or an estimate of it while `seconds` are unknown and empty.
    """

    count: int
    seconds: np.ndarray
    end: float = 0.0


class FrameClock:
    """Collects the timestamps of frames, in the order of the file, as `FrameTimes`.

    A missing timestamp is that of the frame before plus `interval`, the declared frame rate's. A jump backwards, as in
    joined recordings, continues in the same way, and the timestamps that follow are moved with it. A few frames that
    jump ahead, and the next one back, have damaged timestamps: they are shown when the frame before them is.
    """

    def __init__(self, interval: float):
        self.interval = interval
        self._jump = max(LEAST_JUMP, MAX_HELD_BACK * interval)
        self._seconds = array("d")
        self._latest = -math.inf
        self._leap = 0, -math.inf  # number of the last frame that jumped ahead, and the timestamp before it
        self._moved_by = 0.0
        self._last_duration = 0.0

    def add(self, second: float | None, duration: float | None) -> float:
        """Add the timestamp of a frame and the time that it is shown, both in seconds; return it since the first."""
        if second is None:
            second = self._seconds[-1] + self.interval if self._seconds else 0.0
        else:
            second = self._joined(second + self._moved_by)
        if second >= self._latest:
            self._latest, self._last_duration = second, duration or 0.0
        self._seconds.append(second)
        return second - self._seconds[0]

    def _joined(self, second: float) -> float:
        """Return a timestamp that continues those before it."""
        number = len(self._seconds)
        if second > self._latest + self._jump:
            self._leap = number, self._latest
        elif second < self._latest - self._jump:
            first, before = self._leap
            if number - first <= MAX_HELD_BACK and second >= before > -math.inf:
                self._seconds[first:] = array("d", [before] * (number - first))
                self._latest = before
            else:
                self._moved_by += self._latest + self.interval - second
                second = self._latest + self.interval
        return second

    def times(self) -> FrameTimes:
        """Return the frames in the order in which they are shown.

        The decoder of an AVI file with reordered frames gives them in that order with each other's timestamps.
        """
        return frame_times(np.sort(np.array(self._seconds)), self._last_duration)


def frame_times(seconds: np.ndarray, last_duration: float) -> FrameTimes:
    """Return the times of frames from increasing timestamps (N,); a last frame without duration lasts the mean."""
    if not len(seconds):
        return FrameTimes(0, seconds)
    seconds = seconds - seconds[0]
    if last_duration <= 0 and len(seconds) > 1:
        last_duration = seconds[-1] / (len(seconds) - 1)
    return FrameTimes(len(seconds), seconds, float(seconds[-1] + max(0.0, last_duration)))


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


class PublishedSampling:
    """CLIP4Clip's choice among the frames of one video, from second `start` to second `end`, inclusive."""

    def __init__(
        self, fps: float, framerate: int, max_frames: int, slice_framepos: int, start: int = 0, end: int | None = None
    ):
        fps = max(1, int(fps))
        rate = min(framerate, fps)
        limit = None if end is None else (end - start + 1) * rate
        if slice_framepos == 0:
            limit = max_frames if limit is None else min(limit, max_frames)
        self.grid = SampleGrid(fps, rate, start, limit)
        self.max_frames, self.slice_framepos = max_frames, slice_framepos

    def choose(self, times: FrameTimes) -> list[int]:
        """Return the numbers of the chosen frames, increasing."""
        samples = choose_samples(self.grid.count(times.count), self.max_frames, self.slice_framepos)
        return [self.grid.position(sample) for sample in samples]

    def stop_rule(self) -> Callable[[float], bool]:
        """Return a function that takes each frame's second in turn, and is True if no later frame can be chosen."""
        numbers, end = itertools.count(1), self.grid.end()
        return lambda second: next(numbers) >= end

    def describe_length(self, times: FrameTimes) -> str:
        """Return where a video ends whose span has no frame."""
        return f"it ends after {times.count} frames at {self.grid.fps} per second"


class TimeSampling:
    """The choice by timestamps among the frames of one video, from second `start` to second `end`, inclusive.

    A frame is shown from its timestamp until that of the next frame, the last one until the end of the video.
    """

    def __init__(self, framerate: int, max_frames: int, slice_framepos: int, start: int = 0, end: int | None = None):
        self.framerate, self.max_frames, self.slice_framepos = framerate, max_frames, slice_framepos
        self.first_point = start * framerate
        self.end_point = math.inf if end is None else (end + 1) * framerate
        self.tolerance = min(CLOCK_TOLERANCE, 0.25 / framerate)

    def choose(self, times: FrameTimes) -> list[int]:
        """Return the numbers of the chosen frames, increasing; the work is linear in the number of frames."""
        if not times.count:
            return []
        points = self._next_points(times.seconds)
        end = np.maximum(
            np.ceil((times.end - 2 * self.tolerance) * self.framerate),
            np.floor((times.seconds[-1] + self.tolerance) * self.framerate) + 1,
        )
        following = np.append(points[1:], np.clip(end, self.first_point, self.end_point))
        samples = np.flatnonzero(following > points)
        return samples[choose_samples(len(samples), self.max_frames, self.slice_framepos)].tolist()

    def stop_rule(self) -> Callable[[float], bool]:
        """Return a function that takes each frame's second in turn, and is True if no later frame can be chosen."""
        most = self.max_frames if self.slice_framepos == 0 else math.inf
        if most == self.end_point == math.inf:
            return lambda second: False
        points: set[int] = set()

        def is_enough(second: float) -> bool:
            point = max(self.first_point, math.ceil((second - self.tolerance) * self.framerate))
            if most < math.inf:
                points.add(point)
            return point >= self.end_point or len(points) > most

        return is_enough

    def describe_length(self, times: FrameTimes) -> str:
        """Return where a video ends whose span has no frame."""
        return f"it ends at second {times.end:.1f}"

    def _next_points(self, seconds: np.ndarray) -> np.ndarray:
        """Return the number of the first point of the span at or after each of the `seconds` (N,)."""
        return np.clip(np.ceil((seconds - self.tolerance) * self.framerate), self.first_point, self.end_point)


def choose_samples(sample_count: int, max_frames: int, slice_framepos: int) -> list[int]:
    """Return the samples that are kept: all if they fit, else 0 the first, 1 the last, 2 evenly spread ones."""
    if sample_count <= max_frames:
        return list(range(sample_count))
    if slice_framepos == 0:
        return list(range(max_frames))
    if slice_framepos == 1:
        return list(range(sample_count - max_frames, sample_count))
    return np.linspace(0, sample_count - 1, max_frames, dtype=int).tolist()


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
