"""The files of an index in a folder, and the content of index.json: `read_contents`, `write_contents`.

    INDEX/index.json      encoder and folder of the vectors, and a row for every file; replaced as a whole
    INDEX/frames-G.f32    (M,D) float32, the frames of all videos in sequence
    INDEX/pooled-G.f32    (N,D)
    INDEX/tokens-G.f32    (M,2): weight and second of every frame
    INDEX/writer.lock     held by the process that writes

The arrays of a generation G are only appended to, and index.json says how much of them is valid. Videos that were
removed or replaced leave dead rows until video_search/index_writer.py copies the live rows to generation G + 1. A
reader that has the previous files open continues with them.

index.json ends with its own SHA-256, and a video's row has the CRC-32 of its part of every array. Indexes of format 1
have neither; the next update adds them.
"""

import json
import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from modules.whole_files import text_sha256, write_text
from video_search.stores import FileState

FORMAT, FORMAT_WITHOUT_CHECKSUMS = 2, 1
INDEX_FILE = "index.json"
ARRAYS = ("frames", "pooled", "tokens")
HOW_TO_MAKE = "make one with python -m scripts.index FOLDER --index DIR"


class DamagedIndexError(OSError):
    """Vectors of an index are not those that were written."""


class Row(NamedTuple):
    """Place of a video's vectors, with size and modification time of its file, and checksums of its part of ARRAYS."""

    size: int
    mtime_ns: int
    row: int  # in pooled
    first: int  # frame in frames and tokens
    count: int  # frames
    floor: float | None  # None is -inf, which JSON cannot express
    frames_crc32: int | None = None  # None in an index without checksums
    pooled_crc32: int | None = None
    tokens_crc32: int | None = None


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


def crc32(array: np.ndarray) -> int:
    """Return the CRC-32 of an array's float32 values as they are stored."""
    return zlib.crc32(np.ascontiguousarray(array, dtype="<f4").data)


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


def way_out(directory: Path, contents: Contents) -> str:
    """Return the command that encodes damaged vectors again."""
    folder = contents.folder or "FOLDER"
    return f"python -m scripts.index {folder} --index {directory} encodes again only what is damaged"


def read_contents(directory: Path) -> Contents:
    """Return the content of index.json.

    Raises: FileNotFoundError if it is missing; ValueError if it is damaged.
    """
    path = directory / INDEX_FILE
    if not path.is_file():
        raise FileNotFoundError(f"no index in {directory}; {HOW_TO_MAKE}")
    try:
        contents = parse_contents(path.read_text(encoding="utf-8"))
        check_contents(contents)
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"the index {directory} is damaged: {INDEX_FILE}: {error}; restore it from a copy, or remove the folder "
            "and make the index again"
        ) from error
    return contents


def parse_contents(text: str) -> Contents:
    """Return the content of a text in the format of index.json; errors as of its values."""
    content = json.loads(text)
    kind = content.pop("format", None)
    if kind not in (FORMAT, FORMAT_WITHOUT_CHECKSUMS):
        raise ValueError(f"its format is not {FORMAT_WITHOUT_CHECKSUMS} or {FORMAT}")
    if missing := sorted(set(Contents._fields) - content.keys()):
        raise ValueError(f"missing: {', '.join(missing)}")
    checksum = content.pop("sha256", None)
    if kind == FORMAT and text_sha256(text.removesuffix(checksum_ending(checksum)) + "}") != checksum:
        raise ValueError("its content does not match its SHA-256")
    content["videos"] = {name: Row(*row) for name, *row in content["videos"]}
    content["bad"] = {name: FileState(*state) for name, *state in content["bad"]}
    return Contents(**content)


def write_contents(directory: Path, contents: Contents) -> None:
    """Replace index.json. Raises OSError naming it if it cannot be written."""
    content = contents._asdict()
    content["videos"] = [[path, *row] for path, row in contents.videos.items()]
    content["bad"] = [[path, state.size, state.mtime_ns, state.reason] for path, state in contents.bad.items()]
    document = json.dumps({"format": FORMAT, **content})
    write_text(directory / INDEX_FILE, document.removesuffix("}") + checksum_ending(text_sha256(document)))


def checksum_ending(checksum: object) -> str:
    """Return the last key of index.json; the SHA-256 is that of the document without it."""
    return f', "sha256": "{checksum}"}}'


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


def index_stamp(directory: str | os.PathLike) -> tuple[int, ...] | None:
    """Return what changes whenever index.json is replaced or written; None if it is missing."""
    try:
        status = os.stat(Path(directory) / INDEX_FILE)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
