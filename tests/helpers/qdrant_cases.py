"""Random videos and queries for the tests of QdrantStore."""

from pathlib import Path

import numpy as np

from video_search.qdrant_store import QdrantStore
from video_search.stores import FileState
from video_search.vectors import Query, VideoVectors

WIDTH = 8
FOLDER = Path("/videos")
WTI, MEAN_P, TIGHT = ({"sim_header": header} for header in ("wti", "meanP", "tightTransf"))


def units(random: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = random.standard_normal(shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def random_video(random: np.random.Generator, width: int = WIDTH, frames: int | None = None) -> VideoVectors:
    count = frames or int(random.integers(1, 5))
    weights = random.random(count).astype(np.float32) + np.float32(0.1)
    return VideoVectors(
        frames=units(random, count, width),
        weights=weights / weights.sum(),
        seconds=np.arange(count, dtype=np.float32) / 3,
        counts=np.array([count]),
        floors=np.array([random.choice([0.0, -np.inf])], np.float32),
        pooled=units(random, 1, width),
    )


def random_query(random: np.random.Generator, words: int = 5) -> Query:
    weights = random.random(words).astype(np.float32)
    names = tuple("word" for _ in range(words))
    return Query(units(random, words, WIDTH), weights / weights.sum(), units(random, WIDTH), -np.inf, names)


def filled(store: QdrantStore, videos: dict[str, VideoVectors], configuration: dict = WTI) -> QdrantStore:
    store.begin(configuration, "abc", FOLDER)
    for number, (path, video) in enumerate(videos.items()):
        store.put(path, FileState(100 + number, 10**18 + number, ""), video)
    store.commit()
    return store


def random_videos(count: int) -> dict[str, VideoVectors]:
    random = np.random.default_rng(count)
    return {f"folder/{number}.mp4": random_video(random) for number in range(count)}


def same(one: VideoVectors, other: VideoVectors) -> bool:
    """Return whether all arrays are equal, bit for bit and in type."""
    pairs = [(getattr(one, name), getattr(other, name)) for name in VideoVectors.__dataclass_fields__]
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)
