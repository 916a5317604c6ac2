"""Scores of one query with the videos of an index, and the selection of the highest.

The scores are the evaluation's: token-wise interaction for the token heads, cosines of pooled vectors for the pooled
heads, the cross encoder's output for the cross heads. A scan reads frames in place, block by block and without copies.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from video_search.vectors import Query, VideoVectors

# Memory for the cosines of a block. Each block waits for all threads of the matrix product once, so that smaller ones
# gain little on an idle machine and lose much on a busy one.
BLOCK_BYTES = 1 << 22
CROSS_FRAMES = 1 << 10  # frames that a cross encoder reads at once
POOLED_ROWS = 1 << 16  # pooled vectors compared at once


def scores(query: Query, videos: VideoVectors, encoder) -> np.ndarray:
    """Score every video by the head of `encoder`, a `video_search.encoder.Encoder`: (N,) float32.

    A cross encoder reads sentences only: with its heads an example video is compared by the cosine of pooled vectors.
    """
    if encoder.head.encodes_tokens:
        return token_scores(query, videos)
    if encoder.head.reads_pairs and not query.is_video:
        parts = [encoder.cross_scores(query, block) for block in blocks(videos, CROSS_FRAMES)]
        return np.concatenate([np.empty(0, np.float32), *parts])
    return cosines(query, videos.pooled)


def token_scores(query: Query, videos: VideoVectors, block_bytes: int = BLOCK_BYTES) -> np.ndarray:
    """Compute `interaction` of the query with any number of videos in bounded memory: (N,) float32."""
    frames = block_bytes // (4 * len(query.vectors))
    parts = [interaction(query, block) for block in blocks(videos, frames)]
    return np.concatenate([np.empty(0, np.float32), *parts])


def interaction(query: Query, videos: VideoVectors) -> np.ndarray:
    """Compute `token_interaction` of one query with N videos, all cosines (T,M) at once: (N,) float32 in [-1, 1].

    >>> unit = np.eye(2, dtype=np.float32)  # two frames of one video, the second three times the weight of the first
    >>> word = Query(unit[:1], np.ones(1, np.float32), unit[0], -np.inf, ("a",))
    >>> weights, one = np.array([0.25, 0.75], np.float32), np.array([2])
    >>> video = VideoVectors(unit, weights, np.zeros(2), one, np.array([-np.inf], np.float32), unit[:1])
    >>> interaction(word, video).tolist()  # (1 + (0.25 + 0)) / 2
    [0.625]
    """
    starts = videos.starts()
    cosines = query.vectors @ videos.frames.T  # rows of words, as a maximum over rows reads whole cache lines
    best_frame = np.maximum(np.maximum.reduceat(cosines, starts, axis=1), videos.floors)  # (T,N)
    best_word = np.maximum(cosines.max(axis=0), query.floor)  # (M,)
    text_to_video = query.weights @ best_frame
    return (text_to_video + np.add.reduceat(best_word * videos.weights, starts)) / np.float32(2)


def blocks(videos: VideoVectors, frames: int) -> Iterator[VideoVectors]:
    """Yield all videos in order in blocks of up to `frames` frames, or of one longer video; views of the arrays."""
    ends = np.cumsum(videos.counts)
    first, first_frame = 0, 0
    while first < len(videos):
        last = max(first + 1, int(np.searchsorted(ends, first_frame + frames, side="right")))
        rows, places = slice(first, last), slice(first_frame, int(ends[last - 1]))
        yield VideoVectors(
            videos.frames[places], videos.weights[places], videos.seconds[places],
            videos.counts[rows], videos.floors[rows], videos.pooled[rows],
        )  # fmt: skip
        first, first_frame = last, places.stop


def nearest(query: Query, pooled: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the `count` videos whose pooled vectors (N,D) are nearest to the query's, nearest first."""
    return top(cosines(query, pooled), count)


def cosines(query: Query, pooled: np.ndarray) -> np.ndarray:
    """Return the cosines of the query's pooled vector with those of N videos (N,D), block by block: (N,) float32."""
    parts = [pooled[first : first + POOLED_ROWS] @ query.pooled for first in range(0, len(pooled), POOLED_ROWS)]
    return np.concatenate([np.empty(0, np.float32), *parts])


def top(values: np.ndarray, count: int, paths: Sequence[str] | None = None) -> np.ndarray:
    """Return the indices of the `count` highest scores (N,), highest first; ties are ordered by path, or by index.

    >>> top(np.array([0.1, 0.7, 0.3, 0.7]), 3).tolist()
    [1, 3, 2]
    >>> top(np.array([0.1, 0.7, 0.3, 0.7]), 1, ["a", "d", "c", "b"]).tolist()
    [3]
    """
    values = np.where(np.isnan(values), -np.inf, values)  # a partition sorts NaN above all numbers
    places = np.arange(len(values))
    if count < len(values):
        places = np.flatnonzero(values >= np.partition(values, -count)[-count])
    if paths is not None:
        places = np.array(sorted(places, key=lambda place: paths[place]), dtype=np.int64)
    return places[np.argsort(-values[places], kind="stable")][:count]
