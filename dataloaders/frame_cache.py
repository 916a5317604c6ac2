"""Decoded frames on disk: every video is decoded once, for all captions, epochs, ranks and runs.

    DIRECTORY/ab/abcdef...           one entry: the frames of one video for one choice of settings, in filmed order
    DIRECTORY/*.incomplete_frames    entries that are being written

An entry's name is the SHA-256 of its key: name, size and modification time of the video file, all sampling settings,
and what else decides pixels: DECODING_RULE and the versions of FFmpeg's libraries.  A folder of videos can be moved or
mounted elsewhere, and a file that is replaced is decoded again.  Two files are taken for one only if name, size and
time to the nanosecond agree: within a data set names are unique.

An entry is, with little-endian numbers:

    bytes  8   MAGIC, which is also the version of this layout
           4   CRC-32 of all that follows
           4   K, length of the key
           4   L, number of frames
           K   the key, ASCII JSON
           4L  length of every frame in bytes
           ... the frames: exact is uint8 `(3, size, size)` RGB, jpeg is one JPEG file each

Nothing in an entry is trusted: lengths are held against the file's before they are used, the key against the one that
is asked for, and the checksum against the bytes.  An entry that fails is decoded again and replaced.
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

logger = logging.getLogger(__name__)

FRAME_FORMATS = ("exact", "jpeg")
DECODING_RULE = 1
"""Part of every key: raised when `RawVideoExtractor` gives other frames or pixels for the same settings."""

MAGIC = b"FRAMES\x00\x01"
HEADER = "<8sIII"
CHECKED_FROM = 12  # the bytes after magic and checksum
HEAD_BOUND = 4096  # no header is longer: a file name has at most 255 bytes, which JSON writes in at most 1530
CHUNK = 2**18  # bytes: while one chunk's checksum is computed, the disk reads ahead
JPEG_QUALITY = 95
TEMPORARY_SUFFIX = ".incomplete_frames"
TEMPORARY_AGE = 24 * 3600  # seconds; no file takes that long to write, so an older one has lost its writer


class DamagedEntryError(ValueError):
    """An entry does not hold what its name promises."""


class FrameCache:
    """Reads frames as its extractor does, from disk where they were read before.

    Many processes and machines may share the folder.  They need no lock: an entry appears under its name only when it
    is complete, and two writers of one entry write the same bytes.  Where writing fails (disk full, folder read-only),
    this process and its workers say so once, stop storing, and decode what is not there.

    `hits`, `misses` and `rebuilt` count the calls of this process that were answered from an entry, those that decoded
    the video, and those of the latter that found a damaged entry.

    Args:
        directory: folder of the entries, made where it is missing.
        extractor: a `RawVideoExtractor` or anything with its `size`, `framerate` and `read_frames`.
        frame_format: "exact" keeps every byte; "jpeg" takes about a tenth of the space, is slower to read, and changes
            pixels by about 1 of 255 in the mean.  Its frames are the same whether the entry was there before or not.
    """

    def __init__(self, directory, extractor, frame_format: str = "exact"):
        if frame_format not in FRAME_FORMATS:
            raise ValueError(f"frame_format must be one of {', '.join(FRAME_FORMATS)}; got {frame_format!r}")
        self.directory = os.path.abspath(directory)
        self.extractor = extractor
        self.size = extractor.size
        self.framerate = extractor.framerate
        self.frame_format = frame_format
        self.hits = self.misses = self.rebuilt = 0
        self._ffmpeg = {name: av.library_versions[name][:2] for name in ("libavcodec", "libswscale")}
        # Shared by the workers of this process and those that follow them, so that one warning is enough.  Of the spawn
        # context: its values travel to workers of every start method.
        self._storing = multiprocessing.get_context("spawn").Value("b", True)
        # Entries whose checksum this process has found right, by inode, size and times: any change makes a new one.
        self._verified: set[tuple[int, ...]] = set()
        if frame_format == "jpeg":
            logger.warning("frame cache %s: jpeg frames are not exact, results differ slightly", self.directory)
        self._prepare_folder()

    @property
    def is_storing(self) -> bool:
        """False once an entry could not be written: no more are then."""
        return bool(self._storing.value)

    def bytes_per_video(self, max_frames: int) -> int:
        """The most bytes that an entry of exact frames takes; jpeg entries stay far below."""
        return HEAD_BOUND + max_frames * (4 + 3 * self.size**2)

    def expected_size(self, videos: int, max_frames: int) -> int:
        """The most bytes that this number of videos (of time spans, where a video has several) takes."""
        return videos * self.bytes_per_video(max_frames)

    def free_bytes(self) -> int:
        """Free space on the disk of the folder, or where the folder would be if it could be made."""
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
        """`RawVideoExtractor.read_frames`: same arguments, same result, same errors.

        A video that is gone or cannot be asked for its size and time raises VideoReadError, entry or not.
        """
        span = whole_seconds(start_time, end_time)
        source = _identity(path)
        key = self._key(source, int(max_frames), int(slice_framepos), *span)
        name = hashlib.sha256(key).hexdigest()
        entry = os.path.join(self.directory, name[:2], name)
        # Far above every entry, also of tiny frames, which are larger as JPEG files.
        frames = self._load(entry, key, most_bytes=16 * self.bytes_per_video(max_frames))
        if frames is None:
            self.misses += 1
            frames = self.extractor.read_frames(
                path, max_frames, slice_framepos=slice_framepos, start_time=start_time, end_time=end_time
            )
            content = self._pack(frames, key)
            frames = self._unpack(content, key)
            if self.is_storing and _is_still(path, source):
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
        return json.dumps(settings).encode("ascii")

    def _load(self, entry: str, key: bytes, most_bytes: int) -> np.ndarray | None:
        """The frames of the entry; None if there is none or if it is damaged, which is counted."""
        try:
            with open(entry, "rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                if status.st_size > most_bytes:
                    raise DamagedEntryError(f"it has {status.st_size} bytes, more than {most_bytes}")
                stamp = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                content = _read(file, status.st_size, check=stamp not in self._verified)
            frames = self._unpack(content, key)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            logger.info("frame cache: %s is damaged and is made again: %s", entry, error)
            self.rebuilt += 1
            return None
        self._verified.add(stamp)
        self.hits += 1
        return frames

    def _pack(self, frames: np.ndarray, key: bytes) -> np.ndarray:
        """The bytes of an entry, `(N,)` uint8."""
        blocks = [frame.tobytes() if self.frame_format == "exact" else _to_jpeg(frame) for frame in frames]
        lengths = np.array([len(block) for block in blocks], dtype="<u4").tobytes()
        head = struct.pack(HEADER, MAGIC, 0, len(key), len(blocks))
        content = bytearray(b"".join([head, key, lengths, *blocks]))
        checksum = zlib.crc32(memoryview(content)[CHECKED_FROM:])
        struct.pack_into(HEADER, content, 0, MAGIC, checksum, len(key), len(blocks))
        return np.frombuffer(content, dtype=np.uint8)

    def _unpack(self, content: np.ndarray, key: bytes) -> np.ndarray:
        """The frames `(L, 3, size, size)` in an entry; raises ValueError where it is not what `key` asks for."""
        table = struct.calcsize(HEADER) + len(key)
        if len(content) < table:
            raise DamagedEntryError(f"it ends after {len(content)} bytes")
        magic, _, key_length, frame_count = struct.unpack_from(HEADER, content)
        if magic != MAGIC or key_length != len(key) or content[table - len(key) : table].tobytes() != key:
            raise DamagedEntryError("it is no entry, or one of another video or setting")
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
            frame[:] = _from_jpeg(content[first:end])
        return frames

    def _store(self, entry: str, content: np.ndarray) -> None:
        """Writes an entry; where that fails, this process stores no more."""
        name = f"{os.path.basename(entry)}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(8)}"
        # Beside the subfolders and not in them, so that abandoned files are found without listing every entry.
        temporary = Path(self.directory, name + TEMPORARY_SUFFIX)
        try:
            os.makedirs(os.path.dirname(entry), exist_ok=True)
            try:
                # Not synchronized to the disk: an entry that a power cut leaves half written fails its checksum.
                with temporary.open("xb") as file:
                    file.write(content)
                temporary.replace(entry)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            self._stop_storing(error)

    def _prepare_folder(self) -> None:
        """Makes the folder, and removes what writers that were killed left in it."""
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
    """Removes files of that name which nobody has written to for `TEMPORARY_AGE`: their writers were killed."""
    oldest = time.time() - TEMPORARY_AGE
    for file in folder.glob(pattern):
        # Processes that start together find the same files: one of them is quicker.
        with contextlib.suppress(FileNotFoundError):
            if file.stat().st_mtime < oldest:
                file.unlink()


def _identity(path) -> tuple[str, int, int]:
    """Name, size in bytes and time of modification in ns of a video file."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise VideoReadError(path, error.strerror or str(error)) from error
    return os.path.basename(os.fspath(path)), status.st_size, status.st_mtime_ns


def _is_still(path, source: tuple[str, int, int]) -> bool:
    """False where the file was replaced, changed or removed: the frames may be of either state then."""
    try:
        return _identity(path) == source
    except VideoReadError:
        return False


def _read(file: io.FileIO, size: int, check: bool) -> np.ndarray:
    """The `size` bytes of an entry; raises DamagedEntryError where some are missing or fail the checksum."""
    # Read, not mapped: a mapped file that is cut short or whose disk fails would kill the process.
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


def _to_jpeg(frame: np.ndarray) -> bytes:
    """A JPEG file of `(3, size, size)`, with colours at full resolution."""
    return encode_jpeg(frame, quality=JPEG_QUALITY, subsampling=0)


def _from_jpeg(content: np.ndarray) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content), formats=["JPEG"])).transpose(2, 0, 1)
