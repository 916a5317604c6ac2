"""Files below a folder: which of them are videos, which are passed over, and which cannot be looked at.

Every command that searches a folder for videos uses `walk_folder` and `split_videos`, so that all find the same ones.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

MAIN_EXTENSIONS = (
    ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4",
    ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".ogm", ".ogv", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv",
)  # fmt: skip
FURTHER_EXTENSIONS = (
    ".264", ".265", ".360", ".amv", ".avc", ".bik", ".cavs", ".dav", ".dif", ".evo", ".flc", ".fli", ".gif", ".gxf",
    ".h261", ".h263", ".h264", ".h265", ".h266", ".hevc", ".insv", ".ismv", ".ivf", ".kux", ".lrv", ".m1v", ".m2p",
    ".m2t", ".mj2", ".mjpeg", ".mjpg", ".mk3d", ".mod", ".mp4v", ".mpv", ".nsv", ".nut", ".obu", ".qt", ".roq", ".rv",
    ".smk", ".tod", ".tp", ".trp", ".vc1", ".viv", ".vro", ".vvc", ".wm", ".wtv", ".y4m",
)  # fmt: skip
"""Raw streams, proxies and animations. They may lie beside a film of the same name, which then takes precedence."""

VIDEO_EXTENSIONS = (*MAIN_EXTENSIONS, *FURTHER_EXTENSIONS)
"""Files with these extensions, in any case, are videos; others are if their content `looks_like_video`."""

OTHER_EXTENSIONS = (
    ".aac", ".ac3", ".aif", ".aiff", ".aria2", ".ass", ".asx", ".avif", ".bin", ".bmp", ".crdownload", ".csv", ".db",
    ".doc", ".docx", ".download", ".exr", ".filepart", ".flac", ".gz", ".h5", ".heic", ".heif", ".htm", ".html",
    ".ico", ".ini", ".jpeg", ".jpg", ".js", ".json", ".jsonl", ".jxl", ".lock", ".log", ".m3u", ".m3u8", ".m4a",
    ".m4b", ".m4r", ".md", ".mka", ".mks", ".mp3", ".npy", ".npz", ".oga", ".ogg", ".opus", ".parquet", ".part",
    ".partial", ".pdf", ".pickle", ".pkl", ".png", ".psd", ".pt", ".pth", ".py", ".safetensors", ".sh", ".spx", ".srt",
    ".ssa", ".sub", ".svg", ".tar", ".tga", ".tif", ".tiff", ".tmp", ".tsv", ".txt", ".unfinished", ".vtt", ".wav",
    ".weba", ".webp", ".wma", ".xls", ".xlsx", ".xml", ".yaml", ".yml", ".ytdl", ".zip",
)  # fmt: skip
"""Pictures, sound, text and downloads in progress: the content of these is not looked at."""

SYSTEM_NAMES = frozenset(
    ("#recycle", "#snapshot", "$recycle.bin", "@eadir", "@recently-snapshot", "@recycle", "__macosx", "lost+found",
     "recycler", "system volume information")
)  # fmt: skip
"""Folders of operating systems and network drives, in lower case: trash, thumbnails and snapshots."""

EXCLUDE_HELP = "leave out files and folders whose name or path below the folder matches, such as 'trash*'; repeatable"

HIDDEN = "hidden or of the system"
EXCLUDED = "excluded by --exclude"
NOT_A_VIDEO = "not videos"
BROKEN_LINK = "links without their target"
SPECIAL = "neither files nor folders"
BESIDE_A_FILM = "beside a film of the same name"
KINDS = (HIDDEN, EXCLUDED, NOT_A_VIDEO, BROKEN_LINK, SPECIAL, BESIDE_A_FILM)

NAMES_SHOWN = 5
EXAMPLES = 3
HEAD_BYTES = 400  # two packets of an MPEG transport stream, and a bit


@dataclass
class FolderWalk:
    """The entries below a folder, by their paths relative to it, with slashes.

    Attributes:
        files: regular files, at the end of links too.
        hidden_files: regular files that are left out because of their own name.
        passed_over: what was left out, with one of `KINDS`; of a folder only the folder itself.
        errors: entries that cannot be looked at and folders that cannot be listed.
        folders: every folder that was listed, "" for the first; False if nothing but hidden entries is in it.
        aliases: further paths to folders that were listed.
    """

    files: dict[str, os.DirEntry] = field(default_factory=dict)
    hidden_files: dict[str, os.DirEntry] = field(default_factory=dict)
    passed_over: dict[str, str] = field(default_factory=dict)
    errors: dict[str, OSError] = field(default_factory=dict)
    folders: dict[str, bool] = field(default_factory=dict)
    aliases: set[str] = field(default_factory=set)


def walk_folder(folder: str | os.PathLike, exclude: Sequence[str] = ()) -> FolderWalk:
    """Return all entries below `folder` but those that `left_out` names; links are followed, even out of the folder.

    Each real folder is listed once, so that cycles end; of two paths to it the one through fewer links is taken.

    Raises:
        OSError: `folder` itself cannot be listed.
        ValueError: names are not read as UTF-8 here, so that they would not be those of other runs.
    """
    walk = FolderWalk()
    visited: set[tuple[int, int]] = set()
    waiting, behind_links = [""], []
    while waiting or behind_links:
        if not waiting:
            waiting, behind_links = sorted(behind_links, reverse=True), []
        place = waiting.pop()
        current = os.path.join(folder, place)
        try:
            status = os.stat(current)
            if (status.st_dev, status.st_ino) in visited:
                walk.aliases.add(place)
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(current) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            if not place:
                raise
            walk.errors[place] = error
            continue
        walk.folders[place] = False
        for entry in entries:
            path = f"{place}/{entry.name}" if place else entry.name
            if not entry.name.isascii():
                check_file_system_encoding(entry)
            is_folder = add_entry(walk, entry, path, exclude)
            walk.folders[place] |= walk.passed_over.get(path) != HIDDEN
            if is_folder:
                (behind_links if entry.is_symlink() else waiting).append(path)
    return walk


def check_file_system_encoding(entry: os.DirEntry) -> None:
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8":
        raise ValueError(
            f"{entry.path!a}: Python reads file names as {encoding} here; set PYTHONUTF8=1, or a locale with UTF-8"
        )


def add_entry(walk: FolderWalk, entry: os.DirEntry, path: str, exclude: Sequence[str]) -> bool:
    """Record one entry; return whether it is a folder to list."""
    kind = left_out(path, exclude)
    try:
        if entry.is_dir():
            if kind:
                walk.passed_over[path] = kind
            return not kind
        if entry.is_file():
            if not kind:
                walk.files[path] = entry
            elif kind == HIDDEN:
                walk.hidden_files[path] = entry
        elif not kind:
            kind = BROKEN_LINK if entry.is_symlink() else SPECIAL
    except OSError as error:
        if not kind:
            walk.errors[path] = error
    if kind:
        walk.passed_over[path] = kind
    return False


def left_out(path: str, exclude: Sequence[str] = ()) -> str:
    """Return why an entry is left out by its own name or path, "" if it is not.

    `exclude` are shell patterns for a name or for a path below the folder that is searched.
    """
    name = path.rpartition("/")[2]
    if any(fnmatchcase(name, pattern) or fnmatchcase(path, pattern) for pattern in exclude):
        return EXCLUDED
    return HIDDEN if name.startswith(".") or name.lower() in SYSTEM_NAMES else ""


def is_left_out(path: str, exclude: Sequence[str] = ()) -> bool:
    """Return whether a path below the folder that is searched, or a folder on the way to it, is left out."""
    parts = path.split("/")
    return any(left_out("/".join(parts[:length]), exclude) for length in range(1, len(parts) + 1))


def split_videos(walk: FolderWalk) -> dict[str, os.DirEntry]:
    """Return the videos among the files of a walk, sorted by path; the other files are added to `passed_over`."""
    videos = {}
    for path, entry in sorted(walk.files.items()):
        if is_video(entry):
            videos[path] = entry
        else:
            walk.passed_over[path] = NOT_A_VIDEO
    return videos


def is_video(entry: os.DirEntry) -> bool:
    """Return whether a file is a video by its extension, or by its content if the extension is unknown."""
    extension = os.path.splitext(entry.name)[1].lower()
    return extension in VIDEO_EXTENSIONS or (extension not in OTHER_EXTENSIONS and looks_like_video(entry.path))


def looks_like_video(path: str | os.PathLike) -> bool:
    """Return whether a file begins as the containers of videos do; False if it cannot be read.

    The signatures are those in the specifications of the containers. No decoder sees the file here.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return False
    if head[4:8] == b"ftyp":
        return head[8:12] not in (b"M4A ", b"M4B ", b"avif", b"heic", b"heix", b"mif1", b"msf1")
    starts = (
        b"\x1aE\xdf\xa3", b"FLV\x01", b"OggS", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3", b".RMF", b"GIF87a", b"GIF89a",
        b"YUV4MPEG2 ", b"DKIF\x00\x00", b"nut/multimedia container", b"\x06\x0e+4\x02\x05\x01\x01\r\x01\x02",
        b"0&\xb2u\x8ef\xcf\x11\xa6\xd9\x00\xaa\x00b\xcel", b"\xb7\xd8\x00 7I\xdaG\x89",
    )  # fmt: skip
    is_riff = head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"AMV ")
    is_transport_stream = any(head[first : first + 2 * size : size] == b"GG" for first, size in ((0, 188), (4, 192)))
    return is_riff or is_transport_stream or head[4:8] in (b"moov", b"wide") or head.startswith(starts)


def describe_passed_over(passed_over: dict[str, str], kinds: Iterable[str] = KINDS) -> str:
    """Return one line with the count and examples of each kind; "" if nothing was passed over.

    >>> describe_passed_over({"._a.mp4": HIDDEN, "@eaDir": HIDDEN, "notes.txt": NOT_A_VIDEO})
    'passed over: 2 hidden or of the system (._a.mp4, @eaDir), 1 not videos (notes.txt)'
    """
    counts = Counter(passed_over.values())
    parts = []
    for kind in kinds:
        if counts[kind]:
            paths = sorted(path for path, found in passed_over.items() if found == kind)
            examples = ", ".join(paths[:EXAMPLES]) + (", ..." if len(paths) > EXAMPLES else "")
            parts.append(f"{counts[kind]} {kind} ({examples})")
    return f"passed over: {', '.join(parts)}" if parts else ""


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
