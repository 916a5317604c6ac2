"""`IndexReader`: the `SearchableStore` that opens an index in a folder; video_search/index_files.py describes it."""

import os
from pathlib import Path

import numpy as np

from video_search.index_files import (
    ARRAYS,
    Contents,
    array_path,
    array_shape,
    file_states,
    index_stamp,
    read_contents,
    way_out,
)
from video_search.scoring import nearest
from video_search.stored_rows import Parts, StoredRows
from video_search.stores import FileState
from video_search.vectors import Query, VideoVectors


class IndexReader:
    """The videos of an index as they were when it was opened; `reopened` returns them as they are now.

    Attributes:
        paths: the N videos.
        vectors: theirs, in the same order; frames and pooled vectors are `StoredRows`.
    """

    def __init__(self, directory: Path, contents: Contents, stamp: tuple[int, ...] | None = None):
        self.directory = directory
        self.fingerprint, self.settings = contents.fingerprint, contents.settings
        self.folder = Path(contents.folder) if contents.folder else None
        self.paths, self.vectors = list(contents.videos), read_vectors(directory, contents)
        self._contents, self._stamp = contents, stamp

    @classmethod
    def open(cls, index: str | os.PathLike) -> "IndexReader":
        """Open the index in this folder; nothing is changed.

        Raises: FileNotFoundError if it is missing; ValueError if it is damaged or cut short; DamagedIndexError, an
            OSError, if vectors are damaged.
        """
        directory = Path(index)
        while True:
            stamp = index_stamp(directory)
            contents = read_contents(directory)
            try:
                return cls(directory, contents, stamp)
            except (OSError, ValueError):
                # An update that has just ended may have removed the arrays of the generation that was read.
                if read_contents(directory).generation == contents.generation:
                    raise

    def reopened(self) -> "IndexReader":
        """Return the index as it is now: this object if index.json has not changed; errors as of `open`."""
        return self if index_stamp(self.directory) == self._stamp else IndexReader.open(self.directory)

    def close(self) -> None:
        """Do nothing: files are closed with the object, after the last search that uses it."""

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


def read_vectors(directory: Path, contents: Contents) -> VideoVectors:
    """Return the vectors of all videos in order; frames and pooled vectors are read when they are needed.

    Raises: ValueError if an array is cut short; DamagedIndexError if weights and seconds are damaged.
    """
    frames, pooled, tokens = (open_array(directory, name, contents) for name in ARRAYS)
    floors = [-np.inf if row.floor is None else row.floor for row in contents.videos.values()]
    counts = np.array([row.count for row in contents.videos.values()], dtype=np.int64)
    tokens = tokens[:]
    return VideoVectors(frames, tokens[:, 0], tokens[:, 1], counts, np.array(floors, dtype=np.float32), pooled)


def open_array(directory: Path, name: str, contents: Contents) -> StoredRows:
    """Open an array. Raises ValueError if it is missing or shorter than its videos need."""
    path = array_path(directory, name, contents.generation)
    rows = stored_rows(path if path.is_file() else Path(os.devnull), name, directory, contents)
    if rows.file_bytes < rows.needed_bytes:
        raise ValueError(
            f"the index {directory} is cut short: {path.name} has {rows.file_bytes} bytes, {rows.needed_bytes} are "
            f"expected; restore it from a copy, or {way_out(directory, contents)}"
        )
    return rows


def stored_rows(path: Path, name: str, directory: Path, contents: Contents, keep: bool | None = None) -> StoredRows:
    """Return the rows of this array, of whatever length its file is; `keep` as of `StoredRows`."""
    table = list(contents.videos.values())
    firsts = [row.row if name == "pooled" else row.first for row in table]
    counts = [1 if name == "pooled" else row.count for row in table]
    checksums = [getattr(row, f"{name}_crc32") for row in table]
    parts = Parts(list(contents.videos), np.array(firsts, np.int64), np.array(counts, np.int64), checksums)
    return StoredRows(path, array_shape(name, contents)[1], parts, way_out(directory, contents), keep)
