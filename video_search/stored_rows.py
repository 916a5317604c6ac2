"""The vectors of N videos in a file of an index, read when they are needed: `StoredRows`.

Files are read, not mapped: a memory map of a file that gets shorter ends the process (SIGBUS). What was read and
checked stays in memory if the whole array fits there, so that later changes of the file cannot reach it. A larger array
is read, and checked, by every search.
"""

import os
import weakref
from pathlib import Path
from typing import NamedTuple

import numpy as np

from video_search.index_files import DamagedIndexError, crc32

SHARE_OF_MEMORY = 0.5  # of what is available, for one array
MEMORY_FILE, LIMIT_FILES = Path("/proc/meminfo"), (Path("/sys/fs/cgroup/memory.max"),)


class Parts(NamedTuple):
    """The part of every video in an array: its first row, its number of rows, and its CRC-32 (None: not known)."""

    paths: list[str]
    firsts: np.ndarray  # (N,) int64
    counts: np.ndarray  # (N,) int64
    checksums: list[int | None]


class StoredRows:
    """Rows (M,D) float32 of N videos, one video after the other; `rows[slice]` and `rows[indices]` read them.

    The file stays open, and its content available, when another process replaces or removes it.

    Raises:
        DamagedIndexError: on reading, if the rows are no longer those that were written, or are not finite; the message
            ends with `advice`.
    """

    def __init__(self, file: Path, width: int, parts: Parts, advice: str, keep: bool | None = None):
        """Open the file; `keep` read rows in memory, by default if they fit."""
        self.path, self._parts, self._advice = file, parts, advice
        self._ends = np.cumsum(parts.counts)
        self.shape = int(self._ends[-1]) if len(self._ends) else 0, width
        self._file = os.open(file, os.O_RDONLY)
        self._release = weakref.finalize(self, os.close, self._file)
        keep = self.nbytes <= SHARE_OF_MEMORY * available_bytes() if keep is None else keep
        self._memory = np.empty(self.shape, "<f4") if keep else None
        self._is_read = np.zeros(len(parts.paths), bool)

    @property
    def nbytes(self) -> int:
        return 4 * self.shape[0] * self.shape[1]

    @property
    def file_bytes(self) -> int:
        """The length of the file."""
        return os.fstat(self._file).st_size

    @property
    def needed_bytes(self) -> int:
        """The least length of the file that holds the rows of all videos."""
        return 4 * self.shape[1] * int((self._parts.firsts + self._parts.counts).max(initial=0))

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self[:], dtype=dtype)

    def __getitem__(self, places: slice | np.ndarray) -> np.ndarray:
        """Return rows, read-only; a copy for indices."""
        if isinstance(places, slice):
            first, last, step = places.indices(len(self))
            if step < 1:
                raise ValueError(f"the step {step} of a slice of rows must be at least 1")
            last = max(first, last)
            videos = self._videos_of(first, last)
            return self._read(videos)[first - self._start(videos.start) : last - self._start(videos.start) : step]
        videos = np.unique(np.searchsorted(self._ends, places, side="right"))
        if self._memory is not None:
            for part in runs(videos, videos + 1):
                self._read(slice(int(videos[part.start]), int(videos[part.stop - 1]) + 1))
            return self._memory[places]
        counts = self._parts.counts[videos]
        rows = np.concatenate([np.empty((0, self.shape[1]), "<f4"), *(self._read(slice(v, v + 1)) for v in videos)])
        positions = np.searchsorted(videos, np.searchsorted(self._ends, places, side="right"))
        starts = self._ends[videos] - counts
        return rows[(np.cumsum(counts) - counts - starts)[positions] + places]

    def checksums(self) -> list[int | None]:
        """Read all rows; return the CRC-32 of each video's, None for a video whose rows are damaged."""
        checksums = list(self._parts.checksums)
        for video, known in enumerate(checksums):
            try:
                rows = self._read(slice(video, video + 1))
                checksums[video] = crc32(rows) if known is None else known
            except DamagedIndexError:
                checksums[video] = None
        return checksums

    def _start(self, video: int) -> int:
        return int(self._ends[video - 1]) if video else 0

    def _videos_of(self, first: int, last: int) -> slice:
        """Return the videos of a range of rows."""
        if first == last:
            return slice(0, 0)
        first_video, last_video = np.searchsorted(self._ends, (first, last - 1), side="right").tolist()
        return slice(first_video, last_video + 1)

    def _read(self, videos: slice) -> np.ndarray:
        """Return the rows of consecutive videos, checked."""
        start, end = self._start(videos.start), self._start(videos.stop)
        if self._memory is None:
            rows = np.empty((end - start, self.shape[1]), "<f4")
            self._read_into(rows, videos)
        else:
            rows = self._memory[start:end]
            if not self._is_read[videos].all():
                self._read_into(rows, videos)
                self._is_read[videos] = True
        rows = rows.view()
        rows.flags.writeable = False
        return rows

    def _read_into(self, rows: np.ndarray, videos: slice) -> None:
        """Read consecutive videos, each run of rows that are consecutive in the file at once, and check them."""
        firsts, counts = self._parts.firsts[videos], self._parts.counts[videos]
        ends = np.cumsum(counts)
        for run in runs(firsts, firsts + counts):
            part = rows[ends[run.start] - counts[run.start] : ends[run.stop - 1]]
            self._fill(part.reshape(-1).view(np.uint8).data, 4 * self.shape[1] * int(firsts[run.start]))
        for number, (end, count) in enumerate(zip(ends.tolist(), counts.tolist(), strict=True), start=videos.start):
            self._check(number, rows[end - count : end])
        if not np.isfinite(rows).all():
            finite = np.logical_and.reduceat(np.isfinite(rows).all(axis=1), ends - counts)
            self._refuse(videos.start + int(np.argmin(finite)), "are not finite")

    def _fill(self, buffer: memoryview, offset: int) -> None:
        while buffer:
            try:
                count = os.preadv(self._file, [buffer], offset)
            except OSError as error:
                raise DamagedIndexError(f"{self.path} cannot be read: {error.strerror}") from error
            if count == 0:
                raise DamagedIndexError(
                    f"the index is damaged: {self.path} was cut short, to {self.file_bytes} bytes; {self._advice}"
                )
            buffer, offset = buffer[count:], offset + count

    def _check(self, video: int, rows: np.ndarray) -> None:
        checksum = self._parts.checksums[video]
        if checksum is not None and crc32(rows) != checksum:
            self._refuse(video, "do not match their checksum")

    def _refuse(self, video: int, reason: str) -> None:
        raise DamagedIndexError(
            f"the index is damaged: {self.path}: the vectors of {self._parts.paths[video]!r} {reason}; {self._advice}"
        )


def runs(firsts: np.ndarray, ends: np.ndarray) -> list[slice]:
    """Return the runs of consecutive ranges (K,): each begins where the one before it ends.

    >>> runs(np.array([0, 2, 7, 8]), np.array([2, 5, 8, 9]))
    [slice(0, 2, None), slice(2, 4, None)]
    """
    if not len(firsts):
        return []
    breaks = (np.flatnonzero(firsts[1:] != ends[:-1]) + 1).tolist()
    return [slice(first, last) for first, last in zip([0, *breaks], [*breaks, len(firsts)], strict=True)]


def available_bytes() -> float:
    """Return the memory that this process may still take, of the machine or of its container."""
    try:
        line = next(line for line in MEMORY_FILE.read_text().splitlines() if line.startswith("MemAvailable"))
        available = 1024 * int(line.split()[1])
    except (OSError, StopIteration):  # not Linux
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for file in LIMIT_FILES:
        limit = file.read_text().strip() if file.is_file() else "max"
        if limit != "max":
            available = min(available, int(limit))
    return available
