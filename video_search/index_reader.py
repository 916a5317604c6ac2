"""The vectors of videos in a folder of files: `LocalStore`, a `Store` of video_search/indexing.py.

    INDEX/index.json      what the vectors are, and a row for every file; replaced as a whole
    INDEX/frames-G.f32    (M,D) float32, the frames of all videos, one after the other
    INDEX/pooled-G.f32    (N,D)
    INDEX/tokens-G.f32    (M,2): weight and second of every frame
    INDEX/writer.lock     held by the process that writes

The arrays of a generation G are only ever appended to, and index.json says how much of them counts. What a killed
update left behind that is cut off by the next one. Videos that are removed or replaced leave dead rows, until `compact`
copies the live ones to generation G + 1. Readers that have the old files open go on.
"""

import fcntl
import json
import os
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from modules.whole_files import explain_write_errors, write_text
from video_search.indexing import FileState
from video_search.scoring import shortlist
from video_search.vectors import Query, VideoVectors, frame_places

FORMAT = 1
INDEX_FILE = "index.json"
LOCK_FILE = "writer.lock"
ARRAYS = ("frames", "pooled", "tokens")
VIDEOS_AT_ONCE = 1000  # copied to a new generation
HOW_TO_MAKE = "python -m scripts.index FOLDER --index DIR makes one"


class Row(NamedTuple):
    """Where the vectors of a video are, and what tells its file."""

    size: int
    mtime_ns: int
    row: int  # of pooled
    first: int  # of its frames
    count: int
    floor: float | None  # None is -inf, which JSON has no number for


class Contents(NamedTuple):
    """What index.json holds."""

    fingerprint: str
    settings: dict[str, Any]
    folder: str
    generation: int
    dimension: int  # 0 until the first video
    rows: int  # of pooled, dead ones too
    frames: int  # dead ones too
    videos: dict[str, Row]
    bad: dict[str, FileState]


def no_contents() -> Contents:
    """Of an index that is to be made."""
    return Contents("", {}, "", generation=0, dimension=0, rows=0, frames=0, videos={}, bad={})


class LocalStore:
    """An index in a folder, open for reading, or by one process at a time for writing.

    Attributes:
        paths: the videos, N in all, as they were when the index was opened for reading; none for writing.
        vectors: theirs, in the same order: read-only memory maps, or copies in memory where there are dead rows.
    """

    def __init__(self, index: Path, contents: Contents, lock: BinaryIO | None = None):
        self.index, self._lock = index, lock
        self._files: dict[str, BinaryIO] = {}
        self.fingerprint, self.settings = contents.fingerprint, contents.settings
        self.folder = Path(contents.folder) if contents.folder else None
        self._generation, self._dimension = contents.generation, contents.dimension
        self._rows, self._frames = contents.rows, contents.frames
        self._videos, self._bad = contents.videos, contents.bad
        readable = contents if lock is None else no_contents()  # a writer would copy in vain what has dead rows
        self.paths, self.vectors = list(readable.videos), read_vectors(index, readable)

    @classmethod
    def open(cls, index: str | os.PathLike) -> "LocalStore":
        """The index in this folder, for reading.

        Raises FileNotFoundError where there is none, ValueError where it is damaged or cut short; nothing is changed.
        """
        index = Path(index)
        while True:
            contents = read_contents(index)
            try:
                check_lengths(index, contents)
                return cls(index, contents)
            except (FileNotFoundError, ValueError):
                # An update that ends just now may have removed the arrays of the generation that was read.
                if read_contents(index).generation == contents.generation:
                    raise

    @classmethod
    def open_for_writing(cls, index: str | os.PathLike) -> "LocalStore":
        """The index in this folder, which is made where it is missing; `close` gives it free.

        Raises OSError where another process writes to it, ValueError as `open` does, or where the folder has files of
        other kinds.
        """
        index = Path(index)
        if index.exists() and not index.is_dir():
            raise NotADirectoryError(f"--index {index} is a file, not a folder")
        if not (index / INDEX_FILE).is_file() and index.is_dir():
            others = sorted(file.name for file in index.iterdir() if not is_ours(file.name))
            if others:
                raise ValueError(f"--index {index}: this folder has other files, such as {others[0]}; choose a new one")
        index.mkdir(parents=True, exist_ok=True)
        lock = (index / LOCK_FILE).open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise OSError(f"another process is writing to the index {index}; wait until it has ended") from error
        try:
            contents = read_contents(index) if (index / INDEX_FILE).exists() else no_contents()
            check_lengths(index, contents)
            return cls(index, contents, lock)
        except BaseException:
            lock.close()
            raise

    def close(self) -> None:
        """Give the index free for other writers; what was not committed is forgotten."""
        self._close_files()
        if self._lock is not None:
            self._lock.close()

    def __len__(self) -> int:
        return len(self._videos)

    def files(self) -> dict[str, FileState]:
        """Every file, bad ones too, by its path."""
        videos = {path: FileState(row.size, row.mtime_ns) for path, row in self._videos.items()}
        return videos | self._bad

    def size(self) -> int:
        """Bytes of all files of the index."""
        return sum(file.stat().st_size for file in self.index.iterdir())

    def begin(self, settings: dict[str, Any], fingerprint: str, folder: Path) -> None:
        """Say what the vectors to come are; with the first commit it is so."""
        if self._lock is None:
            raise ValueError(f"the index {self.index} is open for reading")
        self.settings, self.fingerprint, self.folder = settings, fingerprint, folder
        self._remove_other_generations()

    def put(self, path: str, state: FileState, vectors: VideoVectors | None) -> None:
        """Add or replace one file: the vectors of one video, or None for a bad file."""
        self.remove(path)
        if vectors is None:
            self._bad[path] = state
        else:
            self._append([path], [state], vectors)

    def remove(self, path: str) -> None:
        """Forget one file, if it is there."""
        self._videos.pop(path, None)
        self._bad.pop(path, None)

    def commit(self) -> None:
        """Make all that was put and removed safe, against a power cut too."""
        for name, file in self._files.items():
            with explain_write_errors(self._array_path(name)):
                file.flush()
                os.fsync(file.fileno())
        self._write_contents()

    def compact(self) -> None:
        """Copy the live rows to a new generation, and remove the old one, where there are dead rows.

        Readers that open an index with dead rows would each have to copy the others.
        """
        if len(self._videos) == self._rows:
            return
        self.commit()
        before, states = self._contents(), self.files()
        self._close_files()
        self._generation, self._rows, self._frames, self._videos = self._generation + 1, 0, 0, {}
        rows = list(before.videos.items())
        for first in range(0, len(rows), VIDEOS_AT_ONCE):
            some = dict(rows[first : first + VIDEOS_AT_ONCE])
            vectors = read_vectors(self.index, before._replace(videos=some))
            self._append(list(some), [states[path] for path in some], vectors)
        self.commit()
        self._remove_other_generations()

    def candidates(self, query: Query, count: int) -> tuple[list[str], VideoVectors]:
        """The `count` videos whose pooled vectors are nearest to the query's."""
        places = shortlist(query, self.vectors.pooled, count)
        return [self.paths[place] for place in places], self.vectors.take(places)

    def example(self, path: str) -> VideoVectors:
        """The vectors of one video; raises ValueError where there are none."""
        if path not in self.paths:
            raise ValueError(f"the index {self.index} has no video {path!r}")
        return self.vectors.take(np.array([self.paths.index(path)]))

    def _contents(self) -> Contents:
        return Contents(
            self.fingerprint, self.settings, str(self.folder or ""), self._generation, self._dimension,
            self._rows, self._frames, self._videos, self._bad,
        )  # fmt: skip

    def _array_path(self, name: str) -> Path:
        return array_path(self.index, name, self._generation)

    def _append(self, paths: list[str], states: list[FileState], vectors: VideoVectors) -> None:
        self._dimension = self._dimension or vectors.pooled.shape[1]
        tokens = np.stack([vectors.weights, vectors.seconds], axis=1)
        for name, array in zip(ARRAYS, (vectors.frames, vectors.pooled, tokens), strict=True):
            with explain_write_errors(self._array_path(name)):
                self._file(name).write(np.ascontiguousarray(array, dtype="<f4").data)
        floors = [None if floor == -np.inf else floor for floor in vectors.floors.tolist()]
        for path, state, count, floor in zip(paths, states, vectors.counts.tolist(), floors, strict=True):
            self._videos[path] = Row(state.size, state.mtime_ns, self._rows, self._frames, count, floor)
            self._rows, self._frames = self._rows + 1, self._frames + count

    def _file(self, name: str) -> BinaryIO:
        """The open file of an array, behind what counts of it."""
        if name not in self._files:
            self._files[name] = file = self._array_path(name).open("ab")
            file.truncate(array_bytes(name, self._contents()))
            file.seek(0, os.SEEK_END)
        return self._files[name]

    def _close_files(self) -> None:
        for file in self._files.values():
            file.raw.close()  # and so without writing what waits in the buffer, for which there may be no room
        self._files.clear()

    def _write_contents(self) -> None:
        contents = self._contents()._asdict()
        contents["videos"] = [[path, *row] for path, row in self._videos.items()]
        contents["bad"] = [[path, state.size, state.mtime_ns, state.reason] for path, state in self._bad.items()]
        write_text(self.index / INDEX_FILE, json.dumps({"format": FORMAT, **contents}))

    def _remove_other_generations(self) -> None:
        """Remove the arrays that index.json does not name: left behind, or cut short, by a killed update."""
        kept = {self._array_path(name) for name in ARRAYS}
        for name in ARRAYS:
            for file in set(self.index.glob(f"{name}-*.f32")) - kept:
                file.unlink()


def is_ours(name: str) -> bool:
    """True for the name of a file that this store writes."""
    return name in (LOCK_FILE, "bad_videos.csv", f"{INDEX_FILE}.partial") or name.endswith(".f32")


def array_path(index: Path, name: str, generation: int) -> Path:
    return index / f"{name}-{generation}.f32"


def array_shape(name: str, contents: Contents) -> tuple[int, int]:
    return {
        "frames": (contents.frames, contents.dimension),
        "pooled": (contents.rows, contents.dimension),
        "tokens": (contents.frames, 2),
    }[name]


def array_bytes(name: str, contents: Contents) -> int:
    length, width = array_shape(name, contents)
    return 4 * length * width


def read_vectors(index: Path, contents: Contents) -> VideoVectors:
    """The vectors of all videos, in their order: memory maps, or copies in memory where there are dead rows."""
    table = contents.videos.values()
    rows, firsts, counts = (np.array([row[column] for row in table], dtype=np.int64) for column in (2, 3, 4))
    floors = np.array([-np.inf if row.floor is None else row.floor for row in table], dtype=np.float32)
    frames, pooled, tokens = (map_array(index, name, contents) for name in ARRAYS)
    if len(rows) < contents.rows:
        places = frame_places(firsts, counts)
        frames, pooled, tokens = frames[places], pooled[rows], tokens[places]
    return VideoVectors(frames, tokens[:, 0], tokens[:, 1], counts, floors, pooled)


def map_array(index: Path, name: str, contents: Contents) -> np.ndarray:
    length, width = array_shape(name, contents)
    if not length:
        return np.empty((0, width), dtype="<f4")  # an empty file cannot be mapped
    return np.memmap(array_path(index, name, contents.generation), dtype="<f4", mode="r", shape=(length, width))


def check_lengths(index: Path, contents: Contents) -> None:
    """Raise ValueError where an array is shorter than index.json says."""
    for name in ARRAYS:
        path, expected = array_path(index, name, contents.generation), array_bytes(name, contents)
        size = path.stat().st_size if path.is_file() else 0
        if size < expected:
            raise ValueError(
                f"the index {index} is cut short: {path.name} has {size} bytes, {expected} are expected; restore it "
                "from a copy, or remove the folder and make the index again"
            )


def read_contents(index: Path) -> Contents:
    """What index.json holds. Raises FileNotFoundError where there is none, ValueError where it is damaged."""
    path = index / INDEX_FILE
    if not path.is_file():
        raise FileNotFoundError(f"no index in {index}: {HOW_TO_MAKE}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format", None) != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        if missing := sorted(set(Contents._fields) - content.keys()):
            raise ValueError(f"it has no {', '.join(missing)}")
        content["videos"] = {name: Row(*row) for name, *row in content["videos"]}
        content["bad"] = {name: FileState(*state) for name, *state in content["bad"]}
        contents = Contents(**content)
        check_contents(contents)
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"the index {index} is damaged: {INDEX_FILE}: {error}; restore it from a copy, or remove the folder and "
            "make the index again"
        ) from error
    return contents


def check_contents(contents: Contents) -> None:
    """Raise ValueError or TypeError where the rows cannot be those of an index."""
    for name, kind in Contents.__annotations__.items():
        kind = dict if name == "settings" else getattr(kind, "__origin__", kind)
        if not isinstance(getattr(contents, name), kind):
            raise ValueError(f"{name} is no {kind.__name__}")
    if min(contents.generation, contents.dimension, contents.rows, contents.frames) < 0:
        raise ValueError("a number is negative")
    if not {row.floor for row in contents.videos.values()} <= {None, 0.0}:
        raise ValueError("a floor is neither 0 nor null")
    numbers = np.array([row[:5] for row in contents.videos.values()] or np.empty((0, 5)), dtype=np.int64)
    rows, firsts, counts = numbers[:, 2], numbers[:, 3], numbers[:, 4]
    is_possible = (rows >= 0) & (rows < contents.rows) & (firsts >= 0) & (counts >= 1)
    if not (is_possible & (firsts + counts <= contents.frames)).all() or len(set(rows.tolist())) < len(rows):
        raise ValueError("rows that are not in its arrays")
