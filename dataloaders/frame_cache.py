"""Cache decoded frames on disk: every video is decoded once, for all captions, epochs, ranks and runs.

    DIRECTORY/ab/abcdef...           one entry: the frames of one video for one choice of settings, in filmed order
    DIRECTORY/*.incomplete_frames    entries that are being written

An entry's name is the SHA-256 of its key: name, size and modification time of the video file, all sampling settings,
and what else the pixels depend on: DECODING_RULE and the versions of FFmpeg's libraries and Pillow. A folder of videos
can be moved or mounted elsewhere, and a file that is replaced is decoded again. Two files are taken for one only if
name, size and time to the nanosecond agree; within a data set names are unique.

An entry is, with little-endian numbers:

    bytes  8   MAGIC, which is also the version of this layout
           4   CRC-32 of the bytes that follow
           4   K, length of the key
           4   L, number of frames
           K   the key, ASCII JSON
           4L  length of every frame in bytes
           ... the frames: exact is uint8 `(3, size, size)` RGB, jpeg is one JPEG file each

Nothing in an entry is trusted: lengths are checked against the file's before they are used, the key against the
requested one, and the checksum against the bytes. A damaged entry is decoded again and replaced.
"""

import contextlib
import hashlib
import io
import json
import logging
import multiprocessing
import os
import secrets
import shutil
import socket
import struct
import time
import zlib
from pathlib import Path

import av
import numpy as np
import PIL
from PIL import Image

from dataloaders.rawvideo_util import VideoReadError, encode_jpeg, order_frames, whole_seconds
from dataloaders.video_damage import record_damage

logger = logging.getLogger(__name__)

FRAME_FORMATS = ("exact", "jpeg")
DECODING_RULE = 2
"""Part of every key; incremented when `RawVideoExtractor` gives other frames or pixels for the same settings."""

MAGIC = b"FRAMES\x00\x01"
HEADER = "<8sIII"
CHECKED_FROM = 12  # bytes; the checksum covers what follows it
HEAD_BOUND = 4096  # bytes; no header is longer: a file name has at most 255 bytes, which JSON writes in at most 1530
CHUNK = 2**18  # bytes: while one chunk's checksum is computed, the disk reads ahead
JPEG_QUALITY = 95
COUNTS = ("hits", "misses", "rebuilt")
TEMPORARY_SUFFIX = ".incomplete_frames"
TEMPORARY_AGE = 24 * 3600  # seconds; no file takes that long to write: the writer of an older one has ended


class DamagedEntryError(ValueError):
    """An entry is damaged, or belongs to another key."""


class FrameCache:
    """Reads frames as its extractor does, from disk if they have been read before.

    Many processes and machines may share the folder without a lock: an entry appears under its name only when it is
    complete, and two writers of an entry write the same bytes. If writing fails (disk full, folder read-only), this
    process and its workers log one warning, stop storing, and decode missing entries.

    Attributes:
        hits, misses: calls of this process that read an entry, and that decoded the video.
        rebuilt: the misses that found a damaged entry.

    Args:
        directory: folder of the entries; created if it is missing.
        extractor: a `RawVideoExtractor` or anything with its `size`, `framerate` and `read_frames`.
        frame_format: "exact" keeps every byte; "jpeg" takes about a tenth of the space, is slower to read, and changes
            pixels by about 1 of 255 on average, with the same result on a miss and on a hit.
    """

    def __init__(self, directory, extractor, frame_format: str = "exact"):
        if frame_format not in FRAME_FORMATS:
            raise ValueError(f"frame_format must be one of {', '.join(FRAME_FORMATS)}; got {frame_format!r}")
        self.directory = os.path.abspath(directory)
        self.extractor = extractor
        self.size = extractor.size
        self.framerate = extractor.framerate
        self.frame_sampling = getattr(extractor, "frame_sampling", "published")
        self.frame_format = frame_format
        self.hits = self.misses = self.rebuilt = 0
        self._ffmpeg = {name: av.library_versions[name][:2] for name in ("libavcodec", "libswscale")}
        # Shared with all workers of this process, for a single warning. Values of the spawn context can be passed to
        # workers of every start method.
        self._storing = multiprocessing.get_context("spawn").Value("b", True)
        self._counts = multiprocessing.get_context("spawn").Array("Q", len(COUNTS))
        # Entries whose checksum this process has verified, by inode, size and times, which any change alters.
        self._verified: set[tuple[int, ...]] = set()
        if frame_format == "jpeg":
            logger.warning("frame cache %s: jpeg frames are not exact, results differ slightly", self.directory)
        self._prepare_folder()

    @property
    def is_storing(self) -> bool:
        """False once an entry could not be written."""
        return bool(self._storing.value)

    def counts(self) -> tuple[int, ...]:
        """Return hits, misses and rebuilt entries of this process and its workers."""
        return tuple(self._counts.get_obj())  # without its lock, which a killed worker may hold

    def _count(self, name: str) -> None:
        setattr(self, name, getattr(self, name) + 1)
        with self._counts.get_lock():
            self._counts.get_obj()[COUNTS.index(name)] += 1

    def bytes_per_video(self, max_frames: int) -> int:
        """Return the largest size of an entry of exact frames, in bytes; jpeg entries are far smaller."""
        return HEAD_BOUND + max_frames * (4 + 3 * self.size**2)

    def expected_size(self, videos: int, max_frames: int) -> int:
        """Return the largest size in bytes for a number of videos, or of time spans if videos have several."""
        return videos * self.bytes_per_video(max_frames)

    def free_bytes(self) -> int:
        """Return the free space on the disk of the folder, in bytes; the folder need not exist."""
        folder = Path(self.directory)
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def read_frames(
        self,
        path,
        max_frames: int,
        slice_framepos: int = 2,
        frame_order: int = 0,
        start_time: float | None = None,
        end_time: float | None = None,
        random_generator: np.random.Generator | None = None,
    ) -> np.ndarray:
        """Read frames with the arguments, result and errors of `RawVideoExtractor.read_frames`.

        A video file whose size and time cannot be read raises VideoReadError even if it has an entry. A damaged video
        has none: it is decoded each time, so that every reader learns of the damage (`record_damage`).
        """
        span = whole_seconds(start_time, end_time)
        source = file_identity(path)
        key = self._key(source, int(max_frames), int(slice_framepos), *span)
        name = hashlib.sha256(key).hexdigest()
        entry = os.path.join(self.directory, name[:2], name)
        # Far above every entry, even of tiny frames, which are larger as JPEG files.
        frames = self._load(entry, key, most_bytes=16 * self.bytes_per_video(max_frames))
        if frames is None:
            self._count("misses")
            with record_damage() as damage:
                frames = self.extractor.read_frames(
                    path, max_frames, slice_framepos=slice_framepos, start_time=start_time, end_time=end_time
                )
            content = self._pack(frames, key)
            frames = self._unpack(content, key)
            if self.is_storing and not damage and is_still(path, source):
                self._store(entry, content)
        return order_frames(frames, frame_order, random_generator)

    def _key(self, source: tuple, max_frames: int, slice_framepos: int, start: int, end: int | None) -> bytes:
        file_name, file_bytes, modified_ns = source
        settings = {
            "decoding_rule": DECODING_RULE,
            "ffmpeg": self._ffmpeg,
            "pillow": PIL.__version__.partition(".")[0],
            "frame_format": self.frame_format,
            "framerate": self.framerate,
            "size": self.size,
            "max_frames": max_frames,
            "slice_framepos": slice_framepos,
            "start": start,
            "end": end,
            "file_name": file_name,
            "file_bytes": file_bytes,
            "modified_ns": modified_ns,
        }
        if self.frame_sampling != "published":  # the keys of published frames are without it
            settings["frame_sampling"] = self.frame_sampling
        return json.dumps(settings).encode("ascii")

    def _load(self, entry: str, key: bytes, most_bytes: int) -> np.ndarray | None:
        """Return the frames of an entry; None if it is missing or damaged."""
        try:
            with open(entry, "rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                if status.st_size > most_bytes:
                    raise DamagedEntryError(f"it has {status.st_size} bytes, more than {most_bytes}")
                stamp = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                content = read_entry(file, status.st_size, check=stamp not in self._verified)
            frames = self._unpack(content, key)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            logger.info("frame cache: %s is damaged and is decoded again: %s", entry, error)
            self._count("rebuilt")
            return None
        self._verified.add(stamp)
        self._count("hits")
        return frames

    def _pack(self, frames: np.ndarray, key: bytes) -> np.ndarray:
        """Return the bytes of an entry, uint8 `(N,)`."""
        blocks = [frame.tobytes() if self.frame_format == "exact" else to_jpeg(frame) for frame in frames]
        lengths = np.array([len(block) for block in blocks], dtype="<u4").tobytes()
        head = struct.pack(HEADER, MAGIC, 0, len(key), len(blocks))
        content = bytearray(b"".join([head, key, lengths, *blocks]))
        checksum = zlib.crc32(memoryview(content)[CHECKED_FROM:])
        struct.pack_into(HEADER, content, 0, MAGIC, checksum, len(key), len(blocks))
        return np.frombuffer(content, dtype=np.uint8)

    def _unpack(self, content: np.ndarray, key: bytes) -> np.ndarray:
        """Return the frames in an entry, uint8 `(L, 3, size, size)`; raise ValueError unless it is valid for `key`."""
        table = struct.calcsize(HEADER) + len(key)
        if len(content) < table:
            raise DamagedEntryError(f"it ends after {len(content)} bytes")
        magic, _, key_length, frame_count = struct.unpack_from(HEADER, content)
        if magic != MAGIC or key_length != len(key) or content[table - len(key) : table].tobytes() != key:
            raise DamagedEntryError("it is not an entry of this version, or belongs to another video or setting")
        start = table + 4 * frame_count
        if frame_count < 1:
            raise DamagedEntryError("it has no frame")
        lengths = content[table:start].view("<u4").tolist()
        if start + sum(lengths) != len(content):
            raise DamagedEntryError(f"it has {len(content)} bytes instead of {start + sum(lengths)}")
        if self.frame_format == "exact":
            return content[start:].reshape(frame_count, 3, self.size, self.size)
        ends = np.cumsum([start, *lengths]).tolist()
        frames = np.empty((frame_count, 3, self.size, self.size), dtype=np.uint8)
        for frame, first, end in zip(frames, ends, ends[1:], strict=False):
            frame[:] = from_jpeg(content[first:end])
        return frames

    def _store(self, entry: str, content: np.ndarray) -> None:
        """Write an entry; if that fails, stop storing."""
        name = f"{os.path.basename(entry)}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(8)}"
        # Beside the subfolders and not in them, so that abandoned files are found without listing every entry.
        temporary = Path(self.directory, name + TEMPORARY_SUFFIX)
        try:
            os.makedirs(os.path.dirname(entry), exist_ok=True)
            try:
                # Without fsync: an entry that a power cut leaves incomplete fails its checksum.
                with temporary.open("xb") as file:
                    file.write(content)
                temporary.replace(entry)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            self._stop_storing(error)

    def _prepare_folder(self) -> None:
        """Create the folder, and remove files of killed writers from it."""
        try:
            os.makedirs(self.directory, exist_ok=True)
            remove_abandoned(Path(self.directory), f"*{TEMPORARY_SUFFIX}")
        except OSError as error:
            self._stop_storing(error)

    def _stop_storing(self, error: OSError) -> None:
        with self._storing.get_lock():
            was_storing, self._storing.value = bool(self._storing.value), False
        if was_storing:
            logger.warning(
                "frame cache %s: no more frames are stored, the videos are decoded instead: %s",
                self.directory,
                error.strerror or error,
            )


def remove_abandoned(folder: Path, pattern: str) -> None:
    """Remove files that match `pattern` and have not changed for `TEMPORARY_AGE`: their writers were killed."""
    oldest = time.time() - TEMPORARY_AGE
    for file in folder.glob(pattern):
        # Processes that start together find the same files; only one of them can remove each.
        with contextlib.suppress(FileNotFoundError):
            if file.stat().st_mtime < oldest:
                file.unlink()


def file_identity(path) -> tuple[str, int, int]:
    """Return name, size in bytes and time of modification in ns of a video file."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise VideoReadError(path, error.strerror or str(error)) from error
    return os.path.basename(os.fspath(path)), status.st_size, status.st_mtime_ns


def is_still(path, source: tuple[str, int, int]) -> bool:
    """Return False if the file was replaced, changed or removed: the frames may be of either version."""
    try:
        return file_identity(path) == source
    except VideoReadError:
        return False


def read_entry(file: io.FileIO, size: int, check: bool) -> np.ndarray:
    """Return the `size` bytes of an entry; raise DamagedEntryError if some are missing or fail the checksum."""
    # Read, not mapped: a mapped file that becomes shorter or whose disk fails would kill the process.
    content = np.empty(size, dtype=np.uint8)
    checksum = 0
    for start in range(0, size, CHUNK):
        chunk = content[start : start + CHUNK]
        if file.readinto(chunk) < len(chunk):
            raise DamagedEntryError(f"it became shorter than {size} bytes while it was read")
        if check:
            checksum = zlib.crc32(content[max(start, CHECKED_FROM) : start + CHUNK], checksum)
    if check and checksum != int.from_bytes(content[CHECKED_FROM - 4 : CHECKED_FROM].tobytes(), "little"):
        raise DamagedEntryError("its checksum is wrong")
    return content


def to_jpeg(frame: np.ndarray) -> bytes:
    """Return a JPEG file of a frame `(3, size, size)`, with colours at full resolution."""
    return encode_jpeg(frame, quality=JPEG_QUALITY, subsampling=0)


def from_jpeg(content: np.ndarray) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content), formats=["JPEG"])).transpose(2, 0, 1)
