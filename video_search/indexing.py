"""Keeping the vectors of a folder of videos up to date: `update`, in any place that is a `Store`."""

import contextlib
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from dataloaders.annotations import SURROGATE, VIDEO_EXTENSIONS, require_path, walk_files
from video_search.encoder import Encoder
from video_search.reading import UnreadableFile
from video_search.stores import FileState, Store, WritableStore
from video_search.vectors import VideoVectors

COMMIT_SECONDS = 60.0  # of work that a kill may cost


@dataclass
class Summary:
    """What an update did, in numbers of files; `bad` are all bad files of the folder, those known before too.

    A video whose file has become bad is removed; those in a folder that cannot be read just now are unchanged.
    """

    added: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    frames: int = 0  # of the added and the changed
    seconds: float = 0.0
    bad: list[UnreadableFile] = field(default_factory=list)

    def count(self, path: str, result: VideoVectors | UnreadableFile, is_new: bool) -> None:
        """Count what became of a file that was read."""
        if isinstance(result, UnreadableFile):
            self.bad.append(replace(result, path=path))
            self.removed += not is_new
            return
        self.frames += int(result.counts.sum())
        self.added += is_new
        self.changed += not is_new


def update(
    store: WritableStore,
    folder: str | os.PathLike,
    encoder: Encoder,
    processes: int | None = None,
    moved: bool = False,
    retry_bad: bool = False,
    progress: bool = False,
) -> Summary:
    """Make `store` hold the vectors of exactly the videos below `folder`; only new and changed ones are encoded.

    A file is the same as long as its path below the folder, its size and its time of change are. `moved` says that the
    videos of the store now lie below `folder`; `retry_bad` reads bad files again that did not change; `processes` and
    `progress` are those of `Encoder.videos`. All is safe about once a minute and where the user interrupts: an update
    that ends early goes on there. A file that could not be opened is tried again each time; what is known of a folder
    that cannot be read is kept. Raises FileNotFoundError where there is no folder, ValueError where it has no video,
    where the store has those of another folder, or vectors of another encoder.
    """
    started = safe_at = time.monotonic()
    folder = require_path(folder, "FOLDER", folder=True).resolve()
    check_same_folder(store, folder, moved)
    check_same_encoder(store, encoder)
    listing = find_files(folder)
    found, known = listing.files, store.files()
    summary = Summary(bad=listing.bad)
    waiting = {}
    for path, state in found.items():
        before = known.get(path)
        if before is None or not before.is_same_file(state) or (before.reason and retry_bad):
            waiting[str(folder / path)] = path
        elif before.reason:
            summary.bad.append(UnreadableFile(path, before.reason))
        else:
            summary.unchanged += 1
    store.begin(encoder.settings, encoder.fingerprint, folder)
    for path in known.keys() - found.keys():
        if path.startswith(listing.unread_folders):
            summary.unchanged += not known[path].reason
        else:
            store.remove(path)
            summary.removed += not known[path].reason
    try:
        for file, result in encoder.videos(list(waiting), processes, progress):
            path = waiting[file]
            put(store, path, found[path], result)
            summary.count(path, result, is_new=path not in known or bool(known[path].reason))
            if time.monotonic() - safe_at >= COMMIT_SECONDS:
                store.commit()
                safe_at = time.monotonic()
    except KeyboardInterrupt:
        store.commit()
        raise
    store.commit()
    summary.bad.sort(key=lambda bad: bad.path)
    summary.seconds = time.monotonic() - started
    return summary


def put(store: WritableStore, path: str, state: FileState, result: VideoVectors | UnreadableFile) -> None:
    """Put what became of a file."""
    if not isinstance(result, UnreadableFile):
        store.put(path, state, result)
    elif result.is_transient:
        store.remove(path)  # unknown, and so tried again
    else:
        store.put(path, replace(state, reason=result.reason), None)


class Listing(NamedTuple):
    """The video files below a folder, by their paths there, in order, and what cannot be listed of it."""

    files: dict[str, FileState]
    bad: list[UnreadableFile]  # files whose names are no text, and folders that cannot be read
    unread_folders: tuple[str, ...]  # the paths of these, each with a slash at its end


def find_files(folder: Path) -> Listing:
    """Every video file below `folder`; links are followed, out of the folder too.

    Raises OSError where the folder itself cannot be read, and ValueError where there is no video: a disk that is not
    mounted looks so, and its videos are not to be forgotten.
    """
    found, bad, unread_folders = {}, [], []

    def note_unread(error: OSError) -> None:
        path = os.path.relpath(error.filename, folder)
        if path == os.curdir:
            raise error
        bad.append(UnreadableFile(path, f"this folder cannot be read: {error.strerror}", is_transient=True))
        unread_folders.append(os.path.join(path, ""))

    for entry in walk_files(folder, note_unread):
        if os.path.splitext(entry.name)[1].lower() not in VIDEO_EXTENSIONS:
            continue
        path = os.path.relpath(entry.path, folder)
        if SURROGATE.search(path):
            bad.append(UnreadableFile(path, "its path is no valid UTF-8: give it another name"))
            continue
        with contextlib.suppress(FileNotFoundError):  # of a file that is removed while the folder is read
            status = entry.stat()
            found[path] = FileState(status.st_size, status.st_mtime_ns)
    if not found and not bad:
        raise ValueError(f"no video below {folder}; names of videos end in {', '.join(VIDEO_EXTENSIONS)}")
    return Listing(dict(sorted(found.items())), bad, tuple(unread_folders))


def check_same_folder(store: Store, folder: Path, moved: bool) -> None:
    """Raise ValueError where the store has the videos of another folder, unless they have `moved`."""
    if store.folder is not None and Path(store.folder) != folder and not moved:
        raise ValueError(
            f"the index has the videos of {store.folder}, not of {folder}: give another --index; where that folder has "
            "moved, --moved keeps the vectors of files with the same relative path, size and time"
        )


def check_same_encoder(store: Store, encoder: Encoder) -> None:
    """Raise ValueError where the store's vectors are those of another encoder, with the settings that differ."""
    if store.fingerprint in ("", encoder.fingerprint):
        return
    names = sorted({*store.settings, *encoder.settings} - {"init_model"})
    pairs = [(name, store.settings.get(name), encoder.settings.get(name)) for name in names]
    differing = [f"{name} {old!r} of the index, {new!r} here" for name, old, new in pairs if old != new]
    raise ValueError(
        "the index was made with another model: "
        + ("; ".join(differing) or "its weights are others, though the settings are the same")
    )
