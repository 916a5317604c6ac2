"""The videos of an index as files that may be shown: their ids, their files, their sampled frames as JPEG."""

import hashlib
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from dataloaders.rawvideo_util import RawVideoExtractor, VideoReadError, encode_jpeg

FRAME_SIZE = 224  # pixels of a side; the page shows them smaller, and on screens with more pixels per length
JPEG_QUALITY = 80
CACHE_BYTES = 64 << 20  # some ten thousand frames
LOCKS = 16


class NoSuchClip(LookupError):
    """There is no such video or frame, or none that may be shown; the message says why."""


def clip_id(path: str) -> str:
    """A name for URLs, made of the path relative to the folder: it says nothing, and stays when videos are added."""
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:20]


class FrameCache:
    """The frames of the videos that were looked at last, as many as fit into `capacity` bytes; for several threads."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.size = 0
        self._entries: OrderedDict[tuple, list[bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple) -> list[bytes] | None:
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)

    def put(self, key: tuple, frames: list[bytes]) -> None:
        """Keep the frames; a video that alone is larger than the capacity is not kept."""
        with self._lock:
            self.size += sum(map(len, frames)) - sum(map(len, self._entries.pop(key, [])))
            self._entries[key] = frames
            while self.size > self.capacity:
                _, oldest = self._entries.popitem(last=False)
                self.size -= sum(map(len, oldest))


class Clips:
    """The videos that a store lists, by `clip_id`; nothing else can be reached."""

    def __init__(self, store: Any):
        self.folder = Path(store.folder)
        settings = store.settings
        self._extractor = RawVideoExtractor(settings["feature_framerate"], FRAME_SIZE)
        self._sampling = (settings["max_frames"], settings["slice_framepos"])
        self._paths = {clip_id(path): path for path, state in store.files().items() if not state.reason}
        self._cache = FrameCache(CACHE_BYTES)
        # The frames of a video are asked for all at once; with its lock held, it is decoded for the first of them only.
        self._locks = [threading.Lock() for _ in range(LOCKS)]

    def __len__(self) -> int:
        return len(self._paths)

    def add(self, path: str) -> str:
        """The id of a video that the store has found, which may have been indexed after this object was made."""
        name = clip_id(path)
        self._paths[name] = path
        return name

    def path(self, name: str) -> str:
        """The path, relative to the folder, of the video with this id; raises NoSuchClip."""
        if name not in self._paths:
            raise NoSuchClip("The index has no such video.")
        return self._paths[name]

    def file(self, name: str) -> Path:
        """The video's file; raises NoSuchClip where it is gone or leads out of the folder."""
        path = self.path(name)
        folder = self.folder.resolve()
        file = (folder / path).resolve()
        if not file.is_relative_to(folder):
            raise NoSuchClip(f"{shown(path)} leads out of the folder of the index, so it is not shown.")
        if not file.is_file():
            raise NoSuchClip(f"{shown(path)} is no longer in the folder of the index.")
        return file

    def frame(self, name: str, number: int) -> tuple[bytes, str]:
        """The sampled frame with this number as JPEG, and its ETag; raises NoSuchClip."""
        file = self.file(name)
        state = file.stat()
        key = (name, state.st_size, state.st_mtime_ns)
        with self._locks[hash(name) % LOCKS]:
            frames = self._cache.get(key)
            if frames is None:
                frames = self._read(file)
                self._cache.put(key, frames)
        if number >= len(frames):
            raise NoSuchClip(
                f"{shown(self.path(name))} has {len(frames)} sampled frames, counted from 0; not {number}."
            )
        return frames[number], f'"{state.st_mtime_ns:x}-{state.st_size:x}-{number}"'

    def _read(self, file: Path) -> list[bytes]:
        try:
            frames = self._extractor.read_frames(file, *self._sampling)
        except VideoReadError as error:
            raise NoSuchClip(f"No frames can be read: {error.reason}.") from error
        return [encode_jpeg(frame, quality=JPEG_QUALITY) for frame in frames]


def shown(path: str) -> str:
    """The path as text for people: bytes that are no UTF-8 become question marks."""
    return os.fsencode(path).decode("utf-8", "replace")
