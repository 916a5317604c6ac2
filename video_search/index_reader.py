"""An index in a folder of files, and `IndexReader`, the `SearchableStore` that opens it.

    INDEX/index.json      encoder and folder of the vectors, and a row for every file; replaced as a whole
    INDEX/frames-G.f32    (M,D) float32, the frames of all videos in sequence
    INDEX/pooled-G.f32    (N,D)
    INDEX/tokens-G.f32    (M,2): weight and second of every frame
    INDEX/writer.lock     held by the process that writes

The arrays of a generation G are only appended to, and index.json says how much of them is valid. Videos that were
removed or replaced leave dead rows until video_search/index_writer.py copies the live rows to generation G + 1. A
reader that has the previous files open continues with them.
"""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from video_search.scoring import nearest
from video_search.stores import FileState
from video_search.vectors import Query, VideoVectors, frame_places

FORMAT = 1
INDEX_FILE = "index.json"
ARRAYS = ("frames", "pooled", "tokens")
HOW_TO_MAKE = "make one with python -m scripts.index FOLDER --index DIR"


class Row(NamedTuple):
    """Place of a video's vectors, with size and modification time of its file."""

    size: int
    mtime_ns: int
    row: int  # in pooled
    first: int  # frame in frames and tokens
    count: int  # frames
    floor: float | None  # None is -inf, which JSON cannot express


class Contents(NamedTuple):
    """The content of index.json, under its keys."""

    fingerprint: str
    settings: dict[str, Any]
    folder: str
    generation: int
    dimension: int  # 0 until the first video
    rows: int  # of pooled, dead ones included
    frames: int  # dead ones included
    videos: dict[str, Row]
    bad: dict[str, FileState]  # unreadable files


class IndexReader:
    """The videos of an index as they were when it was opened.

    Attributes:
        paths: the N videos.
        vectors: theirs, in the same order: read-only memory maps, or copies in memory if the index has dead rows.
    """

    def __init__(self, directory: Path, contents: Contents):
        self.directory = directory
        self.fingerprint, self.settings = contents.fingerprint, contents.settings
        self.folder = Path(contents.folder) if contents.folder else None
        self.paths, self.vectors = list(contents.videos), read_vectors(directory, contents)
        self._contents = contents

    @classmethod
    def open(cls, index: str | os.PathLike) -> "IndexReader":
        """Open the index in this folder; nothing is changed.

        Raises: FileNotFoundError if it is missing; ValueError if it is damaged or cut short.
        """
        directory = Path(index)
        while True:
            contents = read_contents(directory)
            try:
                check_lengths(directory, contents)
                return cls(directory, contents)
            except (FileNotFoundError, ValueError):
                # An update that has just ended may have removed the arrays of the generation that was read.
                if read_contents(directory).generation == contents.generation:
                    raise

    def close(self) -> None:
        """Do nothing: memory maps are released with the object, and readers hold no lock."""

    def __len__(self) -> int:
        return len(self.paths)

    def files(self) -> dict[str, FileState]:
        """Return the state of every file, unreadable ones included, by its path."""
        return file_states(self._contents)

    def scan(self) -> tuple[list[str], VideoVectors]:
        """Return paths and vectors of all videos."""
        return self.paths, self.vectors

    def candidates(self, query: Query, count: int) -> tuple[list[str], VideoVectors]:
        """Return paths and vectors of the `count` videos whose pooled vectors are nearest to the query's."""
        places = nearest(query, self.vectors.pooled, count)
        return [self.paths[place] for place in places], self.vectors.take(places)

    def example(self, path: str) -> VideoVectors:
        """Return the vectors of one video. Raises ValueError if it is not in the index."""
        if path not in self.paths:
            raise ValueError(f"the index {self.directory} has no video {path!r}")
        return self.vectors.take(np.array([self.paths.index(path)]))


def file_states(contents: Contents) -> dict[str, FileState]:
    """Return the state of every file, videos first."""
    return {path: FileState(row.size, row.mtime_ns) for path, row in contents.videos.items()} | contents.bad


def array_path(directory: Path, name: str, generation: int) -> Path:
    return directory / f"{name}-{generation}.f32"


def array_shape(name: str, contents: Contents) -> tuple[int, int]:
    return {
        "frames": (contents.frames, contents.dimension),
        "pooled": (contents.rows, contents.dimension),
        "tokens": (contents.frames, 2),
    }[name]


def array_bytes(name: str, contents: Contents) -> int:
    length, width = array_shape(name, contents)
    return 4 * length * width


def read_vectors(directory: Path, contents: Contents) -> VideoVectors:
    """Return the vectors of all videos in order: memory maps, or copies in memory if there are dead rows."""
    table = contents.videos.values()
    rows, firsts, counts = (np.array([row[column] for row in table], dtype=np.int64) for column in (2, 3, 4))
    floors = np.array([-np.inf if row.floor is None else row.floor for row in table], dtype=np.float32)
    frames, pooled, tokens = (map_array(directory, name, contents) for name in ARRAYS)
    if len(rows) < contents.rows:
        places = frame_places(firsts, counts)
        frames, pooled, tokens = frames[places], pooled[rows], tokens[places]
    return VideoVectors(frames, tokens[:, 0], tokens[:, 1], counts, floors, pooled)


def map_array(directory: Path, name: str, contents: Contents) -> np.ndarray:
    length, width = array_shape(name, contents)
    if not length:
        return np.empty((0, width), dtype="<f4")  # an empty file cannot be mapped
    return np.memmap(array_path(directory, name, contents.generation), dtype="<f4", mode="r", shape=(length, width))


def check_lengths(directory: Path, contents: Contents) -> None:
    """Raise ValueError if an array is shorter than index.json says."""
    for name in ARRAYS:
        path, expected = array_path(directory, name, contents.generation), array_bytes(name, contents)
        size = path.stat().st_size if path.is_file() else 0
        if size < expected:
            raise ValueError(
                f"the index {directory} is cut short: {path.name} has {size} bytes, {expected} are expected; restore "
                "it from a copy, or remove the folder and make the index again"
            )


def read_contents(directory: Path) -> Contents:
    """Return the content of index.json.

    Raises: FileNotFoundError if it is missing; ValueError if it is damaged.
    """
    path = directory / INDEX_FILE
    if not path.is_file():
        raise FileNotFoundError(f"no index in {directory}; {HOW_TO_MAKE}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format", None) != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        if missing := sorted(set(Contents._fields) - content.keys()):
            raise ValueError(f"missing: {', '.join(missing)}")
        content["videos"] = {name: Row(*row) for name, *row in content["videos"]}
        content["bad"] = {name: FileState(*state) for name, *state in content["bad"]}
        contents = Contents(**content)
        check_contents(contents)
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"the index {directory} is damaged: {INDEX_FILE}: {error}; restore it from a copy, or remove the folder "
            "and make the index again"
        ) from error
    return contents


def check_contents(contents: Contents) -> None:
    """Raise ValueError or TypeError if the rows cannot be those of an index."""
    for name, kind in Contents.__annotations__.items():
        kind = dict if name == "settings" else getattr(kind, "__origin__", kind)
        if not isinstance(getattr(contents, name), kind):
            raise ValueError(f"{name} is not of type {kind.__name__}")
    if min(contents.generation, contents.dimension, contents.rows, contents.frames) < 0:
        raise ValueError("a number is negative")
    if not {row.floor for row in contents.videos.values()} <= {None, 0.0}:
        raise ValueError("a floor is neither 0 nor null")
    numbers = np.array([row[:5] for row in contents.videos.values()] or np.empty((0, 5)), dtype=np.int64)
    rows, firsts, counts = numbers[:, 2], numbers[:, 3], numbers[:, 4]
    is_possible = (rows >= 0) & (rows < contents.rows) & (firsts >= 0) & (counts >= 1)
    if not (is_possible & (firsts + counts <= contents.frames)).all() or len(set(rows.tolist())) < len(rows):
        raise ValueError("rows that are not in its arrays")
