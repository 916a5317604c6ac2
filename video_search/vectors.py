"""Vectors and weights of queries and videos, and the parts of a search's results.

All arrays are numpy's. N videos of M frames in all, T query vectors, joint width D. The vectors depend on the head:

    token heads (ti, wti)       unit vectors of valid words and frames, with the head's weights
    pooled heads (meanP, ...)   one unit sentence vector; unit vectors of frames, weights all alike
    tight heads (tightTransf, xti)  one sentence vector, and frames as the cross encoder takes them; weights all alike
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Query:
    """A text or an example video."""

    vectors: np.ndarray  # (T,D) float32
    weights: np.ndarray  # (T,) float32, sum to 1
    pooled: np.ndarray  # (D,) float32 unit vector, for selecting candidates
    floor: float  # lower bound of a frame's MaxSim: 0 if padding of the query has cosine 0, else -inf
    names: tuple[str, ...]  # name of each vector: a token of the text, or the second of a frame
    is_video: bool = False
    notice: str = ""  # shown to the user, such as that words were cut

    def check_finite(self, name: str) -> None:
        """Raise ValueError, with the name of the query, if a number is not finite."""
        check_finite(name, self.vectors, self.weights, self.pooled)


@dataclass(frozen=True)
class VideoVectors:
    """N videos with their frames one after the other, in memory or in files that are read by slicing."""

    frames: np.ndarray  # (M,D) float32; of an index on disk, as `pooled`, a `video_search.stored_rows.StoredRows`
    weights: np.ndarray  # (M,) float32, sum to 1 over each video
    seconds: np.ndarray  # (M,) float32, when each frame is shown
    counts: np.ndarray  # (N,) int64, frames of each video, at least 1
    floors: np.ndarray  # (N,) float32, lower bound of a word's MaxSim: 0 if padding has cosine 0, else -inf
    pooled: np.ndarray  # (N,D) float32 unit vectors, for selecting candidates

    def __len__(self) -> int:
        return len(self.counts)

    def starts(self) -> np.ndarray:
        """Return the index of each video's first frame, (N,) int64."""
        return np.cumsum(self.counts) - self.counts

    def take(self, videos: np.ndarray) -> "VideoVectors":
        """Copy these videos (K,), in this order, into memory."""
        starts, counts = self.starts()[videos], self.counts[videos]
        places = frame_places(starts, counts)
        frames, weights, seconds = self.frames[places], self.weights[places], self.seconds[places]
        return VideoVectors(frames, weights, seconds, counts, self.floors[videos], self.pooled[videos])

    def check_finite(self, name: str) -> None:
        """Raise ValueError, with the name of the video, if a number is not finite."""
        check_finite(name, self.frames, self.weights, self.seconds, self.pooled)

    @classmethod
    def concatenate(cls, parts: list["VideoVectors"]) -> "VideoVectors":
        """Concatenate the videos of at least one part."""
        names = ("frames", "weights", "seconds", "counts", "floors", "pooled")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def check_finite(name: str, *arrays: np.ndarray) -> None:
    """Raise ValueError, with the name of a video or a text, if a number of its arrays is not finite."""
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError(
            f"the vectors of {name} are not finite: use --precision fp32, or a checkpoint whose weights are finite"
        )


def frame_places(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the indices of the frames of K videos, from each video's first frame and number of frames (K,).

    >>> frame_places(np.array([7, 0]), np.array([2, 3])).tolist()
    [7, 8, 0, 1, 2]
    """
    return np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())


@dataclass(frozen=True)
class Moment:
    """A frame of a found video: its second, its weight, and its largest cosine with the vectors of the query."""

    second: float
    weight: float
    score: float


@dataclass(frozen=True)
class Word:
    """A word of the query: its weight, its share of the score of a video, and the second of its best frame."""

    text: str
    weight: float
    share: float
    second: float


@dataclass(frozen=True)
class Hit:
    """A found video; its path is relative to the folder of the index. Moments and words are in their natural order."""

    path: str
    score: float
    moments: tuple[Moment, ...]
    words: tuple[Word, ...]

    def best_seconds(self, count: int = 3) -> list[float]:
        """Return the seconds of the frames with the highest scores, the highest first."""
        return [moment.second for moment in sorted(self.moments, key=lambda moment: -moment.score)[:count]]
