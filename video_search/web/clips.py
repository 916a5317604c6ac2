"""The videos of an index as the page shows them: their ids and their files."""

import errno
import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO


class ClipUnavailable(LookupError):
    """A video or frame that is missing or cannot be shown: the reason, and the HTTP status that fits it."""

    def __init__(self, reason: str, status: int = 404):
        super().__init__(reason)
        self.status = status


def clip_id(path: str) -> str:
    """Return an id for URLs from the path relative to the folder.

    It reveals nothing of the path and does not change when videos are added.
    """
    return hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:20]


class Clips:
    """The videos that the store of a search lists, by `clip_id`; nothing else can be reached.

    Safe to use from several threads.
    """

    def __init__(self, search: Any, media_roots: Sequence[str | os.PathLike] = ()):
        """`search` has the store, another one after an update of the index.

        `media_roots` are further folders whose files may be shown when links of the index's folder lead there.
        """
        self._search = search
        self.media_roots = [os.path.realpath(root) for root in media_roots]
        self._listed: tuple[Any, dict[str, str]] = (None, {})  # a store, and its paths by their ids
        self._paths()

    @property
    def folder(self) -> Path:
        return Path(self._search.store.folder)

    def __len__(self) -> int:
        return len(self._paths())

    def add(self, path: str) -> str:
        """Return the id of a video that the store found, which may have been indexed after the store was opened."""
        name = clip_id(path)
        self._paths()[name] = path
        return name

    def path(self, name: str) -> str:
        """Return the path, relative to the folder, of the video with this id; raise ClipUnavailable."""
        paths = self._paths()
        if name not in paths:
            raise ClipUnavailable("The index has no such video.")
        return paths[name]

    def _paths(self) -> dict[str, str]:
        store, paths = self._listed
        if store is not self._search.store:
            store = self._search.store
            paths = {clip_id(path): path for path, state in store.files().items() if not state.reason}
            self._listed = store, paths
        return paths

    def open(self, name: str) -> BinaryIO:
        """Open the video's file; its `name` is the path without links.

        Raises: ClipUnavailable if the file is missing, outside the folders that may be shown, or not readable.
        """
        path = self.path(name)
        shown = display_path(path)
        file = os.path.realpath(self.folder / path)
        if not any(Path(file).is_relative_to(root) for root in (os.path.realpath(self.folder), *self.media_roots)):
            raise ClipUnavailable(
                f"{shown} leads out of the folder of the index, so it is not shown; scripts.serve shows it with "
                "--media_root FOLDER, the folder of the file"
            )
        try:
            opened = open(file, "rb", opener=open_without_waiting)  # noqa: SIM115 - the caller closes it
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise ClipUnavailable(f"{shown} is no longer in the folder of the index.") from error
        except PermissionError as error:
            raise ClipUnavailable(f"The server has no permission to read {shown}.", 403) from error
        except OSError as error:
            status = 404 if error.errno == errno.ELOOP else 503
            raise ClipUnavailable(f"{shown} cannot be read: {error.strerror}.", status) from error
        state = os.fstat(opened.fileno())
        if not stat.S_ISREG(state.st_mode) or not state.st_size:
            opened.close()
            raise ClipUnavailable(f"{shown} is empty or not a file any more.", 409)
        return opened

    def file_state(self, name: str) -> tuple[str, int, int]:
        """Return path, size in bytes and modification time in ns of the video's file; errors as in `open`."""
        with self.open(name) as file:
            state = os.fstat(file.fileno())
        return file.name, state.st_size, state.st_mtime_ns


def open_without_waiting(path: str, flags: int) -> int:
    """Open a file that may be a pipe, whose writer is not waited for, and that is not a link."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))


def display_path(path: str) -> str:
    """Return the path as text for people: bytes that are not UTF-8 become replacement characters."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
