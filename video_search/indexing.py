"""Keep the vectors of a folder of videos up to date: `update`, in any `WritableStore`."""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from dataloaders.annotations import SURROGATE, require_path
from dataloaders.video_files import (
    BROKEN_LINK,
    FolderWalk,
    describe_passed_over,
    is_left_out,
    split_videos,
    walk_folder,
)
from video_search.encoder import Encoder
from video_search.encoder_flags import SETTINGS_OF_OLDER_INDEXES
from video_search.reading import UnreadableFile
from video_search.stores import FileState, Store, WritableStore
from video_search.vectors import VideoVectors

COMMIT_SECONDS = 60.0  # work that a killed update may lose


@dataclass
class Summary:
    """Counts of files of an update; `unreadable` lists all such files of the folder, including those known before.

    A video whose file has become unreadable counts as removed, one that is out of reach as unchanged.

    Attributes:
        out_of_reach: paths of videos that were kept although their files were not found (`is_out_of_reach`).
        passed_over: what is no video of the folder, with one of `video_files.KINDS`.
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
    out_of_reach: list[str] = field(default_factory=list)
    passed_over: dict[str, str] = field(default_factory=dict)

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
    exclude: Sequence[str] = (),
    remove_missing: bool = False,
    losses: dict[str, str] | None = None,
) -> Summary:
    """Update `store` to hold the vectors of exactly the videos below `folder`; only new and changed ones are encoded.

    A file is unchanged if its path below the folder, its size and its modification time are. Changes are committed
    about once a minute and when the user interrupts, and the next update continues from there. Files that could not be
    opened are read again by every update. A file that was deleted is removed; one that is out of reach is kept. Videos
    whose vectors in the store are damaged are encoded again.

    Args:
        processes, progress: as in `Encoder.videos`.
        moved: the videos of the store are now below `folder`.
        retry_bad: read unchanged unreadable files again.
        exclude: patterns of `video_files.left_out`.
        remove_missing: remove videos that are out of reach, too.
        losses: receives what is lost of damaged videos, by path; entries of videos that are whole or gone are removed.

    Raises: FileNotFoundError if the folder is missing; ValueError if it has no video, if the store has videos of
    another folder or vectors of another encoder, or if the encoder makes vectors that are not finite.
    """
    losses = {} if losses is None else losses
    started = time.monotonic()
    folder = require_path(folder, "FOLDER", folder=True).resolve()
    check_same_folder(store, folder, moved)
    check_same_encoder(store, encoder)
    listing = find_files(folder, exclude)
    found, known = listing.files, store.files()
    summary = Summary(unreadable=listing.unreadable, passed_over=listing.walk.passed_over)
    store.begin(encoder.settings, encoder.fingerprint, folder)
    damaged, summary.unchecked = store.check()
    summary.damaged = sorted(damaged)
    paths = [path for path, state in found.items() if must_be_read(state, known.get(path), path in damaged, retry_bad)]
    count_others(summary, found, known, set(paths))
    for path in losses.keys() - known.keys() - found.keys():
        del losses[path]
    for path in damaged:
        store.remove(path)  # at once: an interrupted update must not keep them
    for path in sorted(known.keys() - found.keys()):
        if path in damaged:
            summary.removed += 1
        elif not remove_missing and not is_left_out(path, exclude) and is_out_of_reach(path, listing.walk):
            if not known[path].reason:
                summary.unchanged += 1
                summary.out_of_reach.append(path)
        else:
            store.remove(path)
            losses.pop(path, None)
            summary.removed += not known[path].reason
    results = encode(encoder, folder, paths, processes, progress, losses)
    commit_regularly(store, put_results(store, results, found, known, summary))
    summary.unreadable.sort(key=lambda file: file.path)
    summary.seconds = time.monotonic() - started
    return summary


def must_be_read(state: FileState, before: FileState | None, is_damaged: bool, retry_bad: bool) -> bool:
    """Return whether a file has to be read: a new or changed one, or one whose vectors are damaged."""
    return before is None or not before.is_same_file(state) or bool(before.reason and retry_bad) or is_damaged


def count_others(summary: Summary, found: dict[str, FileState], known: dict[str, FileState], read: set[str]) -> None:
    """Count the files that are not read again."""
    for path in found.keys() - read:
        if known[path].reason:
            summary.unreadable.append(UnreadableFile(path, known[path].reason))
        else:
            summary.unchanged += 1


def encode(
    encoder: Encoder, folder: Path, paths: list[str], processes: int | None, progress: bool, losses: dict[str, str]
) -> Iterator[tuple[str, VideoVectors | UnreadableFile]]:
    """Yield paths below the folder with their vectors, or why there are none; `losses` follows."""
    path_of_file = {str(folder / path): path for path in paths}

    def note_loss(file: str, loss: str) -> None:
        losses.pop(path_of_file[file], None)
        if loss:
            losses[path_of_file[file]] = loss

    for file, result in encoder.videos(list(path_of_file), processes, progress, note_loss):
        if isinstance(result, UnreadableFile):
            losses.pop(path_of_file[file], None)
        yield path_of_file[file], result


def put_results(
    store: WritableStore, results: Iterable[tuple[str, VideoVectors | UnreadableFile]], found: dict[str, FileState],
    known: dict[str, FileState], summary: Summary,
) -> Iterator[str]:  # fmt: skip
    """Put and count the results; yield each path when its vectors are in the store."""
    for path, result in results:
        put(store, path, found[path], result)
        summary.count(path, result, is_new=path not in known or bool(known[path].reason))
        yield path


def commit_regularly(store: WritableStore, paths: Iterable[str]) -> None:
    """Commit about once a minute while paths come, at their end, and if an error or the user ends them."""
    committed = time.monotonic()
    try:
        for _ in paths:
            if time.monotonic() - committed >= COMMIT_SECONDS:
                store.commit()
                committed = time.monotonic()
        store.commit()
    except (KeyboardInterrupt, ValueError):  # ValueError: a model whose vectors are not finite
        store.commit()
        raise


def put(store: WritableStore, path: str, state: FileState, result: VideoVectors | UnreadableFile) -> None:
    """Put the vectors of a file, or its state if it is unreadable."""
    if not isinstance(result, UnreadableFile):
        store.put(path, state, result)
    elif result.is_transient:
        store.remove(path)  # the next update reads an unknown file again
    else:
        store.put(path, replace(state, reason=result.reason), None)


def is_out_of_reach(path: str, walk: FolderWalk) -> bool:
    """Return whether a file that a walk did not find may be back later, as after a disk was unplugged.

    It was deleted only if its folder is there and still holds something. A folder that is missing, empty or unreadable
    may be a mount point, and a link without its target may lead to one.
    """
    if path in walk.errors or walk.passed_over.get(path) == BROKEN_LINK:
        return True
    parents = [path[:place] for place, letter in enumerate(path) if letter == "/"]
    if not walk.aliases.isdisjoint(parents):
        return False  # the files have other paths now
    return not walk.folders.get(parents[-1] if parents else "", False)


class Listing(NamedTuple):
    """The video files below a folder, by their paths there, in order."""

    files: dict[str, FileState]
    unreadable: list[UnreadableFile]  # files whose paths are not valid UTF-8, and entries that cannot be looked at
    walk: FolderWalk


def find_files(folder: Path, exclude: Sequence[str] = ()) -> Listing:
    """Return every video file below `folder`; links are followed, even out of the folder.

    Raises: OSError if the folder itself cannot be listed; ValueError if it has no video, because the folder may be that
    of a disk which is not mounted, whose videos must not be removed from the index.
    """
    walk = walk_folder(folder, exclude)
    found = {}
    unreadable = []
    for path, error in walk.errors.items():
        entry = "this folder" if os.path.isdir(folder / path) else "this entry"
        unreadable.append(UnreadableFile(path, f"{entry} cannot be read: {error.strerror}", is_transient=True))
    for path, entry in split_videos(walk).items():
        if SURROGATE.search(path):
            unreadable.append(UnreadableFile(path, "its path is not valid UTF-8: rename it"))
            continue
        try:
            status = entry.stat()
            found[path] = FileState(status.st_size, status.st_mtime_ns)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):  # else it was removed during the listing
                walk.errors[path] = error
                unreadable.append(UnreadableFile(path, f"it cannot be read: {error.strerror}", is_transient=True))
    if not found and not unreadable:
        passed_over = describe_passed_over(walk.passed_over)
        raise ValueError(f"no video below {folder}" + (f"; {passed_over}" if passed_over else ""))
    return Listing(found, unreadable, walk)


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
    known = SETTINGS_OF_OLDER_INDEXES | store.settings
    pairs = [(name, known.get(name), encoder.settings.get(name)) for name in names]
    differing = [f"{name} {old!r} of the index, {new!r} here" for name, old, new in pairs if old != new]
    raise ValueError(
        "the index was made with another model: "
        + ("; ".join(differing) or "the settings are the same, but the weights differ")
    )
