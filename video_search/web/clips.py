"""The videos of an index as the page shows them: their ids, their files, and their sampled frames as JPEG."""

import hashlib
import os
from pathlib import Path
from threading import Condition
from typing import Any

from cachetools import LRUCache, cached

from dataloaders.rawvideo_util import RawVideoExtractor, VideoReadError, encode_jpeg

FRAME_SIZE = 224  # pixels per side; the page shows them smaller, for screens with several pixels per CSS pixel
JPEG_QUALITY = 80
CACHE_BYTES = 64 << 20  # about ten thousand frames


class NoSuchClip(LookupError):
    """A video or frame that does not exist or may not be shown; the message gives the reason."""


def clip_id(path: str) -> str:
    """Return an id for URLs from the path relative to the folder.

    It reveals nothing of the path and does not change when videos are added.
    """
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:20]


class Clips:
    """The videos that a store lists, by `clip_id`; nothing else can be reached. Safe to use from several threads."""

    def __init__(self, store: Any):
        self.folder = Path(store.folder)
        settings = store.settings
        self._extractor = RawVideoExtractor(settings["feature_framerate"], FRAME_SIZE)
        self._sampling = (settings["max_frames"], settings["slice_framepos"])
        self._paths = {clip_id(path): path for path, state in store.files().items() if not state.reason}
        # The page requests all frames of a video at once: with a condition, the first request alone decodes it.
        cache = LRUCache(CACHE_BYTES, getsizeof=lambda frames: sum(map(len, frames)))
        self._frames = cached(cache, condition=Condition())(self._read_frames)

    def __len__(self) -> int:
        return len(self._paths)

    def add(self, path: str) -> str:
        """Return the id of a video that the store found, which may have been indexed after this object was made."""
        name = clip_id(path)
        self._paths[name] = path
        return name

    def path(self, name: str) -> str:
        """Return the path, relative to the folder, of the video with this id; raise NoSuchClip."""
        if name not in self._paths:
            raise NoSuchClip("The index has no such video.")
        return self._paths[name]

    def file(self, name: str) -> Path:
        """Return the video's file; raise NoSuchClip if it is missing or outside the folder."""
        path = self.path(name)
        folder = self.folder.resolve()
        file = (folder / path).resolve()
        if not file.is_relative_to(folder):
            raise NoSuchClip(f"{display_path(path)} leads out of the folder of the index, so it is not shown.")
        if not file.is_file():
            raise NoSuchClip(f"{display_path(path)} is no longer in the folder of the index.")
        return file

    def frame(self, name: str, number: int) -> tuple[bytes, str]:
        """Return the sampled frame with this number, from 0, as JPEG, and its ETag; raise NoSuchClip."""
        file = self.file(name)
        state = file.stat()
        frames = self._frames(file, state.st_size, state.st_mtime_ns)
        if number >= len(frames):
            raise NoSuchClip(
                f"{display_path(self.path(name))} has {len(frames)} sampled frames, counted from 0; not {number}."
            )
        return frames[number], f'"{state.st_mtime_ns:x}-{state.st_size:x}-{number}"'

    def _read_frames(self, file: Path, size: int, mtime_ns: int) -> list[bytes]:
        """Return the sampled frames of a file as JPEG; size and time are part of the cache's key."""
        try:
            frames = self._extractor.read_frames(file, *self._sampling)
        except VideoReadError as error:
            raise NoSuchClip(f"No frames can be read: {error.reason}.") from error
        return [encode_jpeg(frame, quality=JPEG_QUALITY) for frame in frames]


def display_path(path: str) -> str:
    """Return the path as text for people: bytes that are not UTF-8 become replacement characters."""
    return os.fsencode(path).decode("utf-8", "replace")
