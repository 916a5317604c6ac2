"""What the search knows of a query and of videos: their vectors, their weights, and what these stand for.

All arrays are numpy's. N videos of M frames in all, T query vectors, joint width D. The heads fill them so:

    token heads (ti, wti)       unit vectors of valid words and frames, with the head's weights
    pooled heads (meanP, ...)   one unit sentence vector; unit vectors of frames, weights all alike
    tight heads (tightTransf, xti)  one sentence vector, and frames as the cross encoder takes them; weights all alike
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Query:
    """A text, or a video that serves as an example."""

    vectors: np.ndarray  # (T,D) float32
    weights: np.ndarray  # (T,) float32, sum to 1
    pooled: np.ndarray  # (D,) float32 unit vector, for the shortlist
    floor: float  # least best match of a frame: 0 where padding of the query counts as cosine 0, else -inf
    names: tuple[str, ...]  # what each vector stands for: a token of the text, or the second of a frame
    is_video: bool = False
    notice: str = ""  # what the user should know, such as words that were cut


@dataclass(frozen=True)
class VideoVectors:
    """N videos, their frames one after the other; rows of a memory-mapped index or a few of them in memory."""

    frames: np.ndarray  # (M,D) float32
    weights: np.ndarray  # (M,) float32, sum to 1 over each video
    seconds: np.ndarray  # (M,) float32, when each frame is shown
    counts: np.ndarray  # (N,) int64, frames of each video, at least 1
    floors: np.ndarray  # (N,) float32, least best match of a word: 0 where padding counts as cosine 0, else -inf
    pooled: np.ndarray  # (N,D) float32 unit vectors, for the shortlist

    def __len__(self) -> int:
        return len(self.counts)

    def starts(self) -> np.ndarray:
        """(N,) int64: the first frame of each video."""
        return np.cumsum(self.counts) - self.counts

    def take(self, videos: np.ndarray) -> "VideoVectors":
        """These videos (K,), in this order, in memory."""
        starts, counts = self.starts()[videos], self.counts[videos]
        places = frame_places(starts, counts)
        frames, weights, seconds = self.frames[places], self.weights[places], self.seconds[places]
        return VideoVectors(frames, weights, seconds, counts, self.floors[videos], self.pooled[videos])

    @classmethod
    def joined(cls, parts: list["VideoVectors"]) -> "VideoVectors":
        """The videos of all parts, of which there is at least one."""
        names = ("frames", "weights", "seconds", "counts", "floors", "pooled")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def frame_places(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The frames of K videos, one video after the other, from the first frame and the number of frames of each (K,).

    >>> frame_places(np.array([7, 0]), np.array([2, 3])).tolist()
    [7, 8, 0, 1, 2]
    """
    return np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())


@dataclass(frozen=True)
class Moment:
    """A frame of a found video: its second, its weight, and its best cosine with any vector of the query."""

    second: float
    weight: float
    score: float


@dataclass(frozen=True)
class Word:
    """A word of the query: its weight, what it adds to the score of the video, and the second it matches best."""

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
        """The seconds of the best-matching frames, the best one first."""
        return [moment.second for moment in sorted(self.moments, key=lambda moment: -moment.score)[:count]]
