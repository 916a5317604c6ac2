"""Captions of a split and the files of their videos: the form in which every data set's reader returns them."""

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

VIDEO_EXTENSIONS = (
    ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4",
    ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".ogm", ".ogv", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv",
)  # fmt: skip
"""Containers that FFmpeg reads; the case of a file's extension does not matter."""

NAMES_SHOWN = 5
SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Caption:
    """A text and the video that it describes; `start` and `end` are seconds, or None for the video's own."""

    video_id: str
    text: str
    start: float | None = None
    end: float | None = None


@dataclass
class Annotations:
    """The captions of a split in order, the file of each of their videos, and notes for the log."""

    captions: list[Caption]
    video_paths: dict[str, Path]
    notes: tuple[str, ...] = ()

    def count_line(self) -> str:
        """Return the counts and notes for the log; missing files are not among them, since they are an error."""
        counts = f"{len(self.video_paths)} videos", f"{len(self.captions)} captions"
        return ", ".join((*counts, *self.notes))


class CaptionsOnly:
    """In the place of `features_path`: only the texts of a split are read, and its videos need not exist."""


class MissingVideosError(FileNotFoundError):
    """Videos of a split without a file: `missing` holds their ids, `found` the files of the others by id."""

    def __init__(self, message: str, missing: list[str], found: dict[str, Path]):
        super().__init__(message)
        self.missing = missing
        self.found = found


def locate_captions(
    captions: list[Caption],
    features_path,
    *,
    source,
    flag: str,
    by_name: bool = False,
    prefix: str = "",
    notes: tuple[str, ...] = (),
) -> Annotations:
    """Check the captions of a split and find the files of their videos: the last step of every reader.

    Args:
        captions: captions of the split, in order.
        features_path: folder of the videos, or `CaptionsOnly`.
        source, flag: the file that the captions come from and the flag that names it, for errors.
        by_name, prefix: see `find_videos`.
        notes: facts for the log beside the counts.

    Raises:
        ValueError: the split is empty, a caption has no text, a time span is not valid, a video has several files, or
            an id does not name a file below `features_path`.
        MissingVideosError: a video has no file.
    """
    if not captions:
        raise ValueError(f"the split is empty: {source} ({flag}) gives no captions")
    empty = list(dict.fromkeys(caption.video_id for caption in captions if not caption.text.strip()))
    if empty:
        raise ValueError(f"{source} ({flag}): captions without text, of {len(empty)} videos: {first_names(empty)}")
    unwritable = [ascii(caption.video_id) for caption in captions if SURROGATE.search(caption.video_id + caption.text)]
    if unwritable:
        raise ValueError(
            f"{source} ({flag}): halves of surrogate pairs, which no file can hold, in the id or a caption of "
            f"{first_names(list(dict.fromkeys(unwritable)))}"
        )
    for caption in captions:
        start = 0 if caption.start is None else caption.start
        end = math.inf if caption.end is None else caption.end
        if not (0 <= start <= end and start < math.inf):
            raise ValueError(
                f"{source} ({flag}), video {caption.video_id}: a time span needs 0 <= start <= end, "
                f"not {caption.start} to {caption.end} seconds"
            )
    video_ids = list(dict.fromkeys(caption.video_id for caption in captions))
    paths = find_videos(video_ids, features_path, by_name=by_name, prefix=prefix)
    shared = len(paths) - len(set(paths.values()))
    if shared:
        notes = (*notes, f"{shared} share the file of another video")
    return Annotations(captions, paths, notes)


def find_videos(video_ids: Iterable[str], features_path, *, by_name: bool = False, prefix: str = "") -> dict[str, Path]:
    """Find the file of every id in one walk through `features_path`; the result keeps the order of the ids.

    An id is a file's name without its extension, which is one of `VIDEO_EXTENSIONS`; `prefix` may precede it in the
    file's name. With `by_name` three readings are tried in turn: a file name, or a path below `features_path`; a name
    without its extension; and, if the id ends in a container's extension or a bare dot, a file of the same name with
    another extension, such as a compressed copy. `CaptionsOnly` gives an empty result.

    Raises:
        FileNotFoundError: `features_path` is not a folder.
        MissingVideosError: ids have no file; names the first five.
        ValueError: ids have more than one file (names the first five), or an id is empty or leads out of the folder.
    """
    if features_path is CaptionsOnly:
        return {}
    folder = require_path(features_path, "--features_path", folder=True)
    video_ids = list(video_ids)
    for video_id in video_ids:
        _check_id(video_id, folder)
    names: dict[str, list[str]] = {}
    stems: dict[str, list[str]] = {}
    for entry in walk_files(folder):
        names.setdefault(entry.name, []).append(entry.path)
        stem, extension = os.path.splitext(entry.name)
        if extension.lower() in VIDEO_EXTENSIONS:
            stems.setdefault(stem, []).append(entry.path)

    def files_of(video_id: str) -> list[str]:
        if not by_name:
            return stems.get(video_id, []) + (stems.get(prefix + video_id, []) if prefix else [])
        if "/" in video_id:
            path = os.path.join(folder, video_id)
            return [path] if os.path.isfile(path) else []
        stem, extension = os.path.splitext(video_id)
        is_file_name = extension == "." or extension.lower() in VIDEO_EXTENSIONS
        return names.get(video_id) or stems.get(video_id) or (stems.get(stem, []) if is_file_name else [])

    found = {video_id: files_of(video_id) for video_id in video_ids}
    several = [" and ".join(sorted(paths)) for paths in found.values() if len(paths) > 1]
    if several:
        raise ValueError(
            f"{len(several)} of {len(found)} videos have more than one file under {folder} (--features_path); "
            f"keep one, or name a narrower folder: {first_names(several)}"
        )
    missing = [video_id for video_id, paths in found.items() if not paths]
    located = {video_id: Path(paths[0]) for video_id, paths in found.items() if paths}
    if missing:
        raise MissingVideosError(
            f"{len(missing)} of {len(found)} videos have no file under {folder} (--features_path): "
            f"{first_names(missing)}",
            missing,
            located,
        )
    return located


def first_names(names: list[str]) -> str:
    """Return the first few names for a message, followed by dots if there are more."""
    return ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")


def require_path(path, flag: str, *, folder: bool = False) -> Path:
    """Return `path` as a Path if it is a file (or a folder); else raise FileNotFoundError, naming it and its flag."""
    kind = "folder" if folder else "file"
    if not path:
        raise FileNotFoundError(f"{flag} is needed: it names a {kind}")
    path = Path(path)
    if not (path.is_dir() if folder else path.is_file()):
        raise FileNotFoundError(f"no such {kind}: {path} ({flag})")
    return path


def _check_id(video_id: str, folder: Path) -> None:
    if not video_id or video_id.startswith(("/", "\\")) or ".." in video_id.replace("\\", "/").split("/"):
        raise ValueError(f"the video id {video_id!r} names no file inside {folder} (--features_path)")


def walk_files(folder: Path, on_error: Callable[[OSError], None] | None = None) -> Iterator[os.DirEntry]:
    """Yield every file below `folder`; links are followed, and each real folder is visited once, so that cycles end.

    The OSError of an unreadable folder is raised; with `on_error` that function gets it, and the walk goes on.
    """
    waiting, visited = [os.fspath(folder)], set()
    while waiting:
        current = waiting.pop()
        try:
            status = os.stat(current)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(current) as listing:
                entries = list(listing)
        except OSError as error:
            if on_error is None:
                raise
            on_error(error)
            continue
        for entry in entries:
            if entry.is_dir():
                waiting.append(entry.path)
            elif entry.is_file():
                yield entry
