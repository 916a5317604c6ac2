"""What a reader returns, whatever the data set: captions, and the file of every video that they describe."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

VIDEO_EXTENSIONS = (
    ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4",
    ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".ogm", ".ogv", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv",
)  # fmt: skip
"""Containers that OpenCV reads, in lower case; file names are compared without regard to case."""

NAMES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Caption:
    """One text and the video that it describes; `start` and `end` (seconds) bound a moment, None is the whole video."""

    video_id: str
    text: str
    start: float | None = None
    end: float | None = None


@dataclass
class Annotations:
    """The captions of one split in their order, and where each of their videos lies."""

    captions: list[Caption]
    video_paths: dict[str, Path]

    def count_line(self) -> str:
        """The counts that are printed at start; a split with missing files is an error, so there are none to count."""
        return f"{len(self.video_paths)} videos, {len(self.captions)} captions, 0 missing files"


class CaptionsOnly:
    """In the place of `features_path`: the split is read for its texts, and its videos need not exist."""


class MissingVideosError(FileNotFoundError):
    """Some videos of a split have no file."""


def locate_captions(captions: list[Caption], features_path, *, source, flag: str, by_name: bool = False) -> Annotations:
    """The last step of every reader: finds the file of each caption's video.

    Args:
        captions: the split, in its order.
        features_path: folder of the videos, from `--features_path`, or `CaptionsOnly`.
        source: the file that the captions come from, and `flag`, the command-line flag that named it (for errors).
        by_name: ids are whole file names; otherwise they are file names without the extension.

    Raises:
        ValueError: the split is empty, or a video has several files.
        MissingVideosError: a video has no file.
    """
    if not captions:
        raise ValueError(f"the split is empty: {source} ({flag}) gives no captions")
    video_ids = list(dict.fromkeys(caption.video_id for caption in captions))
    return Annotations(captions, find_videos(video_ids, features_path, by_name=by_name))


def find_videos(video_ids: Iterable[str], features_path, *, by_name: bool = False) -> dict[str, Path]:
    """Finds the file of every id anywhere under `features_path` in one walk, in the order of the ids.

    For `CaptionsOnly` there is nothing to find, and the result is empty.
    Without `by_name` a file's id is its name without the extension, which must be one of `VIDEO_EXTENSIONS`.

    Raises:
        FileNotFoundError: `features_path` is no folder.
        MissingVideosError: some ids have no file; names the first five.
        ValueError: some ids have more than one file, so that any choice would be a guess; names the first five.
    """
    if features_path is CaptionsOnly:
        return {}
    folder = require_path(features_path, "--features_path", folder=True)
    found: dict[str, list[Path]] = {video_id: [] for video_id in video_ids}
    for path in _walk(folder):
        if by_name:
            video_id = path.name
        elif path.suffix.lower() in VIDEO_EXTENSIONS:
            video_id = path.stem
        else:
            continue
        if video_id in found:
            found[video_id].append(path)

    missing = [video_id for video_id, paths in found.items() if not paths]
    if missing:
        raise MissingVideosError(
            f"{len(missing)} of {len(found)} videos have no file under {folder} (--features_path): {_first(missing)}"
        )
    several = [" and ".join(map(str, sorted(paths))) for paths in found.values() if len(paths) > 1]
    if several:
        raise ValueError(
            f"{len(several)} of {len(found)} videos have more than one file under {folder} (--features_path); "
            f"keep one, or name a narrower folder: {_first(several)}"
        )
    return {video_id: paths[0] for video_id, paths in found.items()}


def require_path(path, flag: str, *, folder: bool = False) -> Path:
    """`path` as a Path if it is a file (or a folder); otherwise a FileNotFoundError that names it and its flag."""
    kind = "folder" if folder else "file"
    if not path:
        raise FileNotFoundError(f"{flag} is needed: it names a {kind}")
    path = Path(path)
    if not (path.is_dir() if folder else path.is_file()):
        raise FileNotFoundError(f"no such {kind}: {path} ({flag})")
    return path


def _walk(folder: Path) -> Iterator[Path]:
    """Every file below `folder`; links are followed, and each real folder is visited once, so cycles end."""
    waiting, visited = [folder], set()
    while waiting:
        current = waiting.pop()
        status = current.stat()
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        with os.scandir(current) as entries:
            for entry in entries:
                if entry.is_dir():
                    waiting.append(Path(entry.path))
                elif entry.is_file():
                    yield Path(entry.path)


def _first(names: list[str]) -> str:
    return ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
