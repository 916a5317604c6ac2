"""`IndexWriter`: the `WritableStore` that keeps an index in a folder, for one process at a time.

video_search/index_files.py describes the files. Whatever an interrupted update left after the valid part of an array
is cut off by the next update.
"""

import fcntl
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from modules.whole_files import explain_write_errors
from video_search.index_files import (
    ARRAYS,
    INDEX_FILE,
    Contents,
    Row,
    array_bytes,
    array_path,
    crc32,
    file_states,
    read_contents,
    write_contents,
)
from video_search.index_reader import read_vectors, stored_rows
from video_search.stores import Check, FileState
from video_search.vectors import VideoVectors

LOCK_FILE = "writer.lock"
UNREADABLE_FILE = "bad_videos.csv"  # written by scripts/index.py
DAMAGED_FILE = "damaged_videos.csv"  # likewise
VIDEOS_AT_ONCE = 1000  # copied to a new generation


class IndexWriter:
    """An index that this process alone may change."""

    def __init__(self, directory: Path, contents: Contents, lock: BinaryIO):
        """Write to an index; `lock` is the open file whose lock this process holds."""
        self.directory, self._lock = directory, lock
        self.fingerprint, self.settings = contents.fingerprint, contents.settings
        self.folder = Path(contents.folder) if contents.folder else None
        self._generation, self._dimension = contents.generation, contents.dimension
        self._rows, self._frames = contents.rows, contents.frames
        self._videos, self._unreadable = contents.videos, contents.bad
        self._array_files: dict[str, BinaryIO] = {}

    @classmethod
    def open(cls, index: str | os.PathLike) -> "IndexWriter":
        """Open the index in this folder, creating a missing one; `close` releases it.

        Raises: OSError if another process writes to it; ValueError if index.json is damaged, or if the folder has files
        of other kinds.
        """
        directory = Path(index)
        if directory.exists() and not directory.is_dir():
            raise NotADirectoryError(f"--index {directory} is a file, not a folder")
        if not (directory / INDEX_FILE).is_file() and directory.is_dir():
            others = sorted(file.name for file in directory.iterdir() if not is_index_file(file.name))
            if others:
                raise ValueError(
                    f"--index {directory}: this folder has other files, such as {others[0]}; choose a new one"
                )
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / LOCK_FILE).open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise OSError(f"another process is writing to the index {directory}; wait until it has ended") from error
        try:
            contents = read_contents(directory) if (directory / INDEX_FILE).exists() else new_contents(directory)
            return cls(directory, contents, lock)
        except BaseException:
            lock.close()
            raise

    def close(self) -> None:
        """Release the index for other writers; uncommitted changes are dropped."""
        self._close_array_files()
        self._lock.close()

    def __len__(self) -> int:
        return len(self._videos)

    def files(self) -> dict[str, FileState]:
        """Return the state of every file, unreadable ones included, by its path."""
        return file_states(self._contents())

    def begin(self, settings: dict[str, Any], fingerprint: str, folder: Path) -> None:
        """Set the encoder and the folder of the vectors that follow; the first commit writes them."""
        self.settings, self.fingerprint, self.folder = settings, fingerprint, folder
        self._remove_other_generations()

    def check(self) -> Check:
        """Read all vectors and compare them with their checksums; videos of an index without checksums get theirs."""
        contents = self._contents()
        unchecked = sum(row.frames_crc32 is None for row in self._videos.values())
        checksums = []
        for name in ARRAYS:
            path = self._array_path(name) if self._array_path(name).is_file() else Path(os.devnull)
            checksums.append(stored_rows(path, name, self.directory, contents, keep=False).checksums())
        damaged = set()
        for (path, row), parts in zip(contents.videos.items(), zip(*checksums, strict=True), strict=True):
            if None in parts:
                damaged.add(path)
            else:
                self._videos[path] = Row(*row[:6], *parts)
        return Check(damaged, unchecked)

    def put(self, path: str, state: FileState, vectors: VideoVectors | None) -> None:
        """Add or replace one file: the vectors of one video, or None for an unreadable file.

        Raises: ValueError if a vector is not finite.
        """
        self.remove(path)
        if vectors is None:
            self._unreadable[path] = state
        else:
            vectors.check_finite(repr(path))
            self._append([path], [state], vectors)

    def remove(self, path: str) -> None:
        """Remove one file, if it is present."""
        self._videos.pop(path, None)
        self._unreadable.pop(path, None)

    def commit(self) -> None:
        """Make every `put` and `remove` durable, against a power cut too."""
        for name, file in self._array_files.items():
            with explain_write_errors(self._array_path(name)):
                file.flush()
                os.fsync(file.fileno())
        write_contents(self.directory, self._contents())

    def compact(self) -> None:
        """Copy the live rows to a new generation and remove the previous one, if there are dead rows.

        Every reader of an index with dead rows has to copy the live ones into memory.
        """
        if len(self._videos) == self._rows:
            return
        self.commit()
        before, states = self._contents(), self.files()
        self._close_array_files()
        self._generation, self._rows, self._frames, self._videos = self._generation + 1, 0, 0, {}
        rows = list(before.videos.items())
        for first in range(0, len(rows), VIDEOS_AT_ONCE):
            some = dict(rows[first : first + VIDEOS_AT_ONCE])
            vectors = read_vectors(self.directory, before._replace(videos=some))
            self._append(list(some), [states[path] for path in some], vectors)
        self.commit()
        self._remove_other_generations()

    def _contents(self) -> Contents:
        return Contents(
            self.fingerprint, self.settings, str(self.folder or ""), self._generation, self._dimension,
            self._rows, self._frames, self._videos, self._unreadable,
        )  # fmt: skip

    def _array_path(self, name: str) -> Path:
        return array_path(self.directory, name, self._generation)

    def _append(self, paths: list[str], states: list[FileState], vectors: VideoVectors) -> None:
        self._dimension = self._dimension or vectors.pooled.shape[1]
        tokens = np.stack([vectors.weights, vectors.seconds], axis=1)
        arrays = [np.ascontiguousarray(array, dtype="<f4") for array in (vectors.frames, vectors.pooled, tokens)]
        for name, array in zip(ARRAYS, arrays, strict=True):
            with explain_write_errors(self._array_path(name)):
                self._array_file(name).write(array.data)
        frames, pooled, tokens = arrays
        ends, floors = np.cumsum(vectors.counts).tolist(), vectors.floors.tolist()
        for place, (path, state, end) in enumerate(zip(paths, states, ends, strict=True)):
            count, floor = int(vectors.counts[place]), floors[place]
            own = slice(end - count, end)
            row = Row(
                state.size, state.mtime_ns, self._rows, self._frames, count, None if floor == -np.inf else floor,
                crc32(frames[own]), crc32(pooled[place]), crc32(tokens[own]),
            )  # fmt: skip
            self._rows, self._frames = self._rows + 1, self._frames + count
            self._videos[path] = row  # after the counts: an interrupt between the two leaves a dead row

    def _array_file(self, name: str) -> BinaryIO:
        """Return the open file of an array, positioned after its valid part."""
        if name not in self._array_files:
            self._array_files[name] = file = self._array_path(name).open("ab")
            file.truncate(array_bytes(name, self._contents()))
            file.seek(0, os.SEEK_END)
        return self._array_files[name]

    def _close_array_files(self) -> None:
        for file in self._array_files.values():
            file.raw.close()  # without writing the buffer, for which a full disk has no room
        self._array_files.clear()

    def _remove_other_generations(self) -> None:
        """Remove arrays that index.json does not name, which an interrupted update left."""
        kept = {self._array_path(name) for name in ARRAYS}
        for name in ARRAYS:
            for file in set(self.directory.glob(f"{name}-*.f32")) - kept:
                file.unlink()


def new_contents(directory: Path) -> Contents:
    """Return the contents of an index without files.

    Its generation is new: readers may have arrays open whose index.json was removed.
    """
    numbers = [file.stem.rpartition("-")[2] for name in ARRAYS for file in directory.glob(f"{name}-*.f32")]
    generation = max((int(number) + 1 for number in numbers if number.isdecimal()), default=0)
    return Contents("", {}, "", generation, dimension=0, rows=0, frames=0, videos={}, bad={})


def is_index_file(name: str) -> bool:
    """Return True for the name of a file that an index may leave without its index.json."""
    return name in (LOCK_FILE, UNREADABLE_FILE, DAMAGED_FILE, f"{INDEX_FILE}.partial") or name.endswith(".f32")
