"""Find the files of video ids below a folder.

A name that differs from a file's in its writing only is accepted: Unicode normalisation, blanks around it, backslashes,
an absolute path into the folder. One that may mean another file, such as one in another case, is named in the error.
"""

import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path, PureWindowsPath

from dataloaders.video_files import (
    BROKEN_LINK,
    EXCLUDED,
    FURTHER_EXTENSIONS,
    HIDDEN,
    MAIN_EXTENSIONS,
    OTHER_EXTENSIONS,
    SPECIAL,
    VIDEO_EXTENSIONS,
    FolderWalk,
    describe_passed_over,
    first_names,
    is_video,
    left_out,
    looks_like_video,
    require_path,
    walk_folder,
)

MIN_EXTENSION_CHARACTERS = 2


class CaptionsOnly:
    """In the place of `features_path`: only the texts of a split are read, and its videos need not exist."""


class MissingVideosError(FileNotFoundError):
    """Videos of a split without a file: `missing` holds their ids, `found` the files of the others by id."""

    def __init__(self, message: str, missing: list[str], found: dict[str, Path]):
        super().__init__(message)
        self.missing = missing
        self.found = found


def find_videos(
    video_ids: Iterable[str], features_path, *, by_name: bool = False, prefix: str = "", exclude: Sequence[str] = ()
) -> dict[str, Path]:
    """Return the first part of `locate_videos`."""
    return locate_videos(video_ids, features_path, by_name=by_name, prefix=prefix, exclude=exclude)[0]


def locate_videos(
    video_ids: Iterable[str], features_path, *, by_name: bool = False, prefix: str = "", exclude: Sequence[str] = ()
) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Find the file of every id in one walk through `features_path`, in the order of the ids; with notes for the log.

    An id is a file's name without its extension, which is one of `VIDEO_EXTENSIONS`, or another if the content is a
    video; `prefix` may precede it in the file's name. With `by_name` three readings are tried in turn: a file name, or
    a path below `features_path`; a name without its extension; and, if the id ends in a container's extension or a bare
    dot, a file of the same name with another extension, such as a compressed copy. `exclude`: see `left_out`.
    The result is empty for `CaptionsOnly`.

    Raises:
        FileNotFoundError: `features_path` is not a folder.
        MissingVideosError: ids have no file; names the first five, and files with similar names.
        ValueError: ids have more than one file (names the first five), or an id is empty or leads out of the folder.
    """
    if features_path is CaptionsOnly:
        return {}, ()
    folder = require_path(features_path, "--features_path", folder=True)
    video_ids = list(video_ids)
    for video_id in video_ids:
        check_id(video_id, folder)
    walk = walk_folder(folder, exclude)
    names = FileNames(folder, walk, exclude)
    written = {video_id: names.as_written(video_id, by_name, prefix) for video_id in video_ids}
    found = {video_id: paths or names.in_other_writing(video_id, prefix) for video_id, paths in written.items()}
    several = [" and ".join(str(folder / path) for path in sorted(paths)) for paths in found.values() if len(paths) > 1]
    if several:
        raise ValueError(
            f"{len(several)} of {len(found)} videos have more than one file under {folder} (--features_path); "
            f"keep one, or name a narrower folder: {first_names(several)}"
        )
    missing = [video_id for video_id, paths in found.items() if not paths]
    located = {video_id: folder / paths[0] for video_id, paths in found.items() if paths}
    if missing:
        raise MissingVideosError(
            f"{len(missing)} of {len(found)} videos have no file under {folder} (--features_path): "
            f"{first_names(missing)}{names.near_misses(missing)}{describe_errors(walk, '; ')}",
            missing,
            located,
        )
    return located, lookup_notes(walk)


class FileNames:
    """The files of a walk by their names, without the left-out ones; a hidden file is found by its own name only."""

    def __init__(self, folder: Path, walk: FolderWalk, exclude: Sequence[str] = ()):
        self.folder, self.walk, self.exclude = folder, walk, exclude
        self.names: dict[str, list[str]] = {}
        self.stems: dict[str, list[str]] = {}
        self.further_stems: dict[str, list[str]] = {}
        self.unknown_stems: dict[str, list[str]] = {}
        for path in (*walk.files, *walk.hidden_files):
            name = path.rpartition("/")[2]
            self.names.setdefault(name, []).append(path)
            stem, extension = os.path.splitext(name)
            extension = extension.lower()
            if extension in MAIN_EXTENSIONS:
                self.stems.setdefault(stem, []).append(path)
            elif extension in FURTHER_EXTENSIONS:
                self.further_stems.setdefault(stem, []).append(path)
            elif len(extension) >= MIN_EXTENSION_CHARACTERS and extension not in OTHER_EXTENSIONS:
                self.unknown_stems.setdefault(stem, []).append(path)
        self._normalized: dict[str, list[str]] | None = None

    def as_written(self, video_id: str, by_name: bool, prefix: str = "") -> list[str]:
        """Return the files whose name or path is exactly that of the id."""
        return self.by_name(video_id) if by_name else self.by_stem(video_id, prefix)

    def by_stem(self, stem: str, prefix: str = "") -> list[str]:
        """Return the files with this name without the extension: of the first group that has one."""
        wanted = (stem, prefix + stem) if prefix else (stem,)
        for stems in (self.stems, self.further_stems):
            if found := [path for name in wanted for path in stems.get(name, [])]:
                return found
        unknown = [path for name in wanted for path in self.unknown_stems.get(name, [])]
        return [path for path in unknown if looks_like_video(self.folder / path)]

    def by_name(self, name: str) -> list[str]:
        """Return the files with this path, name, name without the extension, or name with another extension."""
        if "/" in name:
            path = path_inside(name, self.folder) or os.path.normpath(name)
            is_file = os.path.isfile(self.folder / path) and left_out(path, self.exclude) != EXCLUDED
            return [path] if is_file else []
        stem, extension = os.path.splitext(name)
        is_file_name = extension == "." or extension.lower() in VIDEO_EXTENSIONS
        return self.names.get(name) or self.by_stem(name) or (self.by_stem(stem) if is_file_name else [])

    def in_other_writing(self, video_id: str, prefix: str = "") -> list[str]:
        """Return the files that the id can only mean: the same characters, or a path into the folder."""
        name = video_id.strip()
        spellings = list(dict.fromkeys((name, name.replace("\\", "/"))))
        for spelling in spellings:
            if found := self.by_name(spelling) or (self.by_stem(prefix + spelling) if prefix else []):
                return found
        for spelling in spellings:
            normal = unicodedata.normalize("NFC", spelling)
            stem, extension = os.path.splitext(normal)
            keys = [normal, prefix + normal]
            if "/" not in normal and (extension == "." or extension.lower() in VIDEO_EXTENSIONS):
                keys.append(stem)
            for key in keys:
                if found := self.normalized().get(key):
                    return found
        return []

    def normalized(self) -> dict[str, list[str]]:
        """Return the files by path, name and name without the extension of a video, in Unicode's composed form."""
        if self._normalized is None:
            self._normalized = {}
            for path in self.walk.files:
                if path.isascii():
                    continue  # it has one form, which `as_written` has tried
                name = path.rpartition("/")[2]
                stem, extension = os.path.splitext(name)
                keys = {path, name, stem} if extension.lower() in VIDEO_EXTENSIONS else {path, name}
                for key in {unicodedata.normalize("NFC", key) for key in keys}:
                    self._normalized.setdefault(key, []).append(path)
        return self._normalized

    def near_misses(self, missing: list[str]) -> str:
        """Return the end of a message with what was found in place of the missing ids; "" if nothing is similar."""
        paths: dict[str, list[str]] = {}
        for path in (*self.walk.files, *self.walk.passed_over, *self.walk.errors, *self.walk.folders):
            paths.setdefault(loose_name(path), []).append(path)
        near = []
        for video_id in missing:
            wanted = loose_name(PureWindowsPath(video_id.strip()).as_posix())
            if wanted and (found := paths.get(wanted)):
                near.append(f"{video_id!r} (found {self.describe(sorted(found)[0])})")
        return f"; similar names, which may be other videos: {first_names(near)}" if near else ""

    def describe(self, path: str) -> str:
        """Return the path with the reason why it is not taken as a video, if there is one."""
        reasons = {
            HIDDEN: "hidden", EXCLUDED: "left out by --exclude", BROKEN_LINK: "a link without its target",
            SPECIAL: "neither a file nor a folder",
        }  # fmt: skip
        reason = reasons.get(self.walk.passed_over.get(path, ""), "")
        if path in self.walk.errors:
            reason = self.walk.errors[path].strerror
        elif path in self.walk.folders:
            reason = "a folder"
        elif path in self.walk.files and not is_video(self.walk.files[path]):
            reason = "not a video"
        return f"{path!r}, {reason}" if reason else repr(path)


def check_id(video_id: str, folder: Path) -> None:
    name = video_id.strip()
    leaves = name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/")
    if not name or (leaves and not path_inside(name, folder)):
        raise ValueError(f"the video id {video_id!r} names no file inside {folder} (--features_path)")


def path_inside(name: str, folder: Path) -> str:
    """Return the path below `folder` to which an absolute path leads; "" for any other name."""
    if not os.path.isabs(name) or ".." in name.split("/"):
        return ""
    for root in (os.path.abspath(folder), os.path.realpath(folder)):
        if name.startswith(root.rstrip("/") + "/"):
            return os.path.relpath(name, root)
    return ""


def loose_name(path: str) -> str:
    """Return a path's name without extensions, blanks and differences of case and form."""
    name = path.rpartition("/")[2].strip()
    stem, extension = os.path.splitext(name)
    stem = stem if extension.lower() in (*VIDEO_EXTENSIONS, *OTHER_EXTENSIONS, ".") else name
    return unicodedata.normalize("NFKC", stem.strip()).casefold()


def describe_errors(walk: FolderWalk, separator: str = "") -> str:
    if not walk.errors:
        return ""
    path, error = next(iter(sorted(walk.errors.items())))
    return f"{separator}{len(walk.errors)} entries cannot be read, such as {path}: {error.strerror}"


def lookup_notes(walk: FolderWalk) -> tuple[str, ...]:
    """Return what was passed over and could hold videos, for the log."""
    passed_over = {
        path: kind
        for path, kind in walk.passed_over.items()
        if path not in walk.hidden_files or os.path.splitext(path)[1].lower() in VIDEO_EXTENSIONS
    }
    return tuple(filter(None, (describe_passed_over(passed_over), describe_errors(walk))))
