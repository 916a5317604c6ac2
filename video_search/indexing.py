"""Keep the vectors of a folder of videos up to date: `update`, in any `WritableStore`."""

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

COMMIT_SECONDS = 60.0  # work that a killed update may lose


@dataclass
class Summary:
    """Counts of files of an update; `unreadable` lists all such files of the folder, including those known before.

    A video whose file has become unreadable counts as removed, one in a folder that cannot be listed as unchanged.
    """

    added: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    frames: int = 0  # of added and changed videos
    seconds: float = 0.0
    unreadable: list[UnreadableFile] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)  # videos whose vectors in the index were damaged; encoded again
    unchecked: int = 0  # videos of an index without checksums, which have them now

    def count(self, path: str, result: VideoVectors | UnreadableFile, is_new: bool) -> None:
        """Count a file that was read."""
        if isinstance(result, UnreadableFile):
            self.unreadable.append(replace(result, path=path))
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
    """Update `store` to hold the vectors of exactly the videos below `folder`; only new and changed ones are encoded.

    A file is unchanged if its path below the folder, its size and its modification time are. Changes are committed
    about once a minute and when the user interrupts, and the next update continues from there. Files that could not be
    opened are read again by every update; videos in a folder that cannot be listed are kept. Videos whose vectors in
    the store are damaged are encoded again.

    Args:
        processes, progress: as in `Encoder.videos`.
        moved: the videos of the store are now below `folder`.
        retry_bad: read unchanged unreadable files again.

    Raises: FileNotFoundError if the folder is missing; ValueError if it has no video, if the store has videos of
    another folder or vectors of another encoder, or if the encoder makes vectors that are not finite.
    """
    started = committed = time.monotonic()
    folder = require_path(folder, "FOLDER", folder=True).resolve()
    check_same_folder(store, folder, moved)
    check_same_encoder(store, encoder)
    listing = find_files(folder)
    found, known = listing.files, store.files()
    summary = Summary(unreadable=listing.unreadable)
    store.begin(encoder.settings, encoder.fingerprint, folder)
    damaged, unchecked = store.check()
    summary.damaged, summary.unchecked = sorted(damaged), unchecked
    waiting = {}
    for path, state in found.items():
        before = known.get(path)
        if before is None or not before.is_same_file(state) or (before.reason and retry_bad) or path in damaged:
            waiting[str(folder / path)] = path
        elif before.reason:
            summary.unreadable.append(UnreadableFile(path, before.reason))
        else:
            summary.unchanged += 1
    for path in damaged:
        store.remove(path)  # at once: an interrupted update must not keep them
    for path in known.keys() - found.keys():
        if path in damaged:
            summary.removed += 1
        elif path.startswith(listing.unread_folders):
            summary.unchanged += not known[path].reason
        else:
            store.remove(path)
            summary.removed += not known[path].reason
    try:
        for file, result in encoder.videos(list(waiting), processes, progress):
            path = waiting[file]
            put(store, path, found[path], result)
            summary.count(path, result, is_new=path not in known or bool(known[path].reason))
            if time.monotonic() - committed >= COMMIT_SECONDS:
                store.commit()
                committed = time.monotonic()
        store.commit()
    except (KeyboardInterrupt, ValueError):  # ValueError: a model whose vectors are not finite
        store.commit()
        raise
    summary.unreadable.sort(key=lambda file: file.path)
    summary.seconds = time.monotonic() - started
    return summary


def put(store: WritableStore, path: str, state: FileState, result: VideoVectors | UnreadableFile) -> None:
    """Put the vectors of a file, or its state if it is unreadable."""
    if not isinstance(result, UnreadableFile):
        store.put(path, state, result)
    elif result.is_transient:
        store.remove(path)  # the next update reads an unknown file again
    else:
        store.put(path, replace(state, reason=result.reason), None)


class Listing(NamedTuple):
    """The video files below a folder, by their paths there, in order."""

    files: dict[str, FileState]
    unreadable: list[UnreadableFile]  # files whose paths are not valid UTF-8, and folders that cannot be listed
    unread_folders: tuple[str, ...]  # paths of these folders, each with a slash at the end


def find_files(folder: Path) -> Listing:
    """Return every video file below `folder`; links are followed, even out of the folder.

    Raises: OSError if the folder itself cannot be listed; ValueError if it has no video, because the folder may be that
    of a disk which is not mounted, whose videos must not be removed from the index.
    """
    found, unreadable, unread_folders = {}, [], []

    def note_unread(error: OSError) -> None:
        path = os.path.relpath(error.filename, folder)
        if path == os.curdir:
            raise error
        unreadable.append(UnreadableFile(path, f"this folder cannot be read: {error.strerror}", is_transient=True))
        unread_folders.append(os.path.join(path, ""))

    for entry in walk_files(folder, note_unread):
        if os.path.splitext(entry.name)[1].lower() not in VIDEO_EXTENSIONS:
            continue
        path = os.path.relpath(entry.path, folder)
        if SURROGATE.search(path):
            unreadable.append(UnreadableFile(path, "its path is not valid UTF-8: rename it"))
            continue
        with contextlib.suppress(FileNotFoundError):  # the file was removed during the listing
            status = entry.stat()
            found[path] = FileState(status.st_size, status.st_mtime_ns)
    if not found and not unreadable:
        raise ValueError(f"no video below {folder}; names of videos end in {', '.join(VIDEO_EXTENSIONS)}")
    return Listing(dict(sorted(found.items())), unreadable, tuple(unread_folders))


def check_same_folder(store: Store, folder: Path, moved: bool) -> None:
    """Raise ValueError if the store has videos of another folder, unless they have `moved`."""
    if store.folder is not None and Path(store.folder) != folder and not moved:
        raise ValueError(
            f"the index has the videos of {store.folder}, not of {folder}: give another --index; if that folder has "
            "moved, --moved keeps the vectors of files with the same relative path, size and time"
        )


def check_same_encoder(store: Store, encoder: Encoder) -> None:
    """Raise ValueError, with the settings that differ, if another encoder made the store's vectors."""
    if store.fingerprint in ("", encoder.fingerprint):
        return
    names = sorted({*store.settings, *encoder.settings} - {"init_model"})
    pairs = [(name, store.settings.get(name), encoder.settings.get(name)) for name in names]
    differing = [f"{name} {old!r} of the index, {new!r} here" for name, old, new in pairs if old != new]
    raise ValueError(
        "the index was made with another model: "
        + ("; ".join(differing) or "the settings are the same, but the weights differ")
    )
