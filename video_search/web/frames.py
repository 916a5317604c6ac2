"""The sampled frames of an index's videos as JPEG, each video decoded once for all requests that wait for it."""

import asyncio
import os
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from cachetools import LRUCache, TTLCache

from dataloaders.rawvideo_util import RawVideoExtractor, VideoReadError, encode_jpeg
from video_search.web.clips import Clips, ClipUnavailable, display_path
from video_search.web.decoding import Decoders

FRAME_SIZE = 224  # pixels per side; the page shows them smaller, for screens with several pixels per CSS pixel
JPEG_QUALITY = 80
CACHE_BYTES = 64 << 20  # about ten thousand frames
FAILURE_SECONDS = 60  # in which a file without frames is not decoded again
FAILURES = 10_000


@dataclass
class Decoding:
    """A video that is being decoded, and the number of requests that wait for it."""

    frames: asyncio.Task
    waiting: int = 0


class Frames:
    """Frames of `clips`, decoded by `decoders`. For one event loop."""

    def __init__(self, clips: Clips, decoders: Decoders, settings: dict[str, Any]):
        """`settings` are those of the encoder, which sampled the frames."""
        self.clips, self._decoders = clips, decoders
        sampling = settings.get("frame_sampling", "published")
        self._task = partial(
            read_jpegs,
            extractor=RawVideoExtractor(settings["feature_framerate"], FRAME_SIZE, sampling),
            max_frames=settings["max_frames"],
            slice_framepos=settings["slice_framepos"],
        )
        self._kept = LRUCache(CACHE_BYTES, getsizeof=lambda frames: sum(map(len, frames)))
        self._failures = TTLCache(FAILURES, FAILURE_SECONDS)
        self._running: dict[tuple, Decoding] = {}

    async def frame(self, name: str, number: int) -> tuple[bytes, str]:
        """Return the sampled frame with this number, from 0, as JPEG, and its ETag; raise ClipUnavailable."""
        file = await asyncio.to_thread(self.clips.file_state, name)
        frames = await self._frames(file)
        if number >= len(frames):
            path = display_path(self.clips.path(name))
            raise ClipUnavailable(f"{path} has {len(frames)} sampled frames, counted from 0; not {number}.")
        _, size, mtime_ns = file
        return frames[number], f'"{mtime_ns:x}-{size:x}-{number}"'

    async def _frames(self, file: tuple[str, int, int]) -> list[bytes]:
        """Return the frames of a file: path, size and time, so that another one in its place is read again."""
        if file in self._kept:
            return self._kept[file]
        if file in self._failures:
            raise ClipUnavailable(self._failures[file])
        # The page requests all frames of a video at once: the first request alone decodes it.
        if file not in self._running:
            self._running[file] = Decoding(asyncio.create_task(self._decode(file)))
        decoding = self._running[file]
        decoding.waiting += 1
        try:
            return await asyncio.shield(decoding.frames)
        finally:
            decoding.waiting -= 1
            if not decoding.waiting:  # the last one that waited has its answer, or has left
                decoding.frames.cancel()
                if self._running.get(file) is decoding:
                    del self._running[file]

    async def _decode(self, file: tuple[str, int, int]) -> list[bytes]:
        try:
            frames = [frame.tobytes() for frame in await self._decoders.run(self._task, file[0])]
        except VideoReadError as error:
            self._failures[file] = f"No frames can be read: {error.reason}."
            raise ClipUnavailable(self._failures[file]) from error
        if sum(map(len, frames)) <= self._kept.maxsize:
            self._kept[file] = frames
        return frames


def read_jpegs(
    path: str | os.PathLike, extractor: RawVideoExtractor, max_frames: int, slice_framepos: int
) -> list[np.ndarray]:
    """Return the sampled frames of a file as JPEG, one uint8 array each; raise VideoReadError."""
    frames = extractor.read_frames(path, max_frames, slice_framepos)
    return [np.frombuffer(encode_jpeg(frame, quality=JPEG_QUALITY), np.uint8) for frame in frames]
