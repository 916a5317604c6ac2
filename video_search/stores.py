"""Interfaces of a place that keeps vectors of videos: `SearchableStore` for searches, `WritableStore` for updates."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from video_search.vectors import Query, VideoVectors


@dataclass(frozen=True)
class FileState:
    """Identity of a file that was read: size in bytes and modification time; `reason` if it is unreadable."""

    size: int
    mtime_ns: int
    reason: str = ""

    def is_same_file(self, other: "FileState") -> bool:
        return (self.size, self.mtime_ns) == (other.size, other.mtime_ns)


class Check(NamedTuple):
    """Outcome of reading all vectors of a store."""

    damaged: set[str]  # videos whose vectors are missing, or not those that were put
    unchecked: int  # videos without checksums, whose vectors were taken as they are


class Store(Protocol):
    """The vectors of videos, by their paths relative to one folder."""

    directory: Path | None  # of the index's own files; None if these are Qdrant's
    settings: dict[str, Any]  # of the encoder that made the vectors; {} in a new store
    fingerprint: str  # of that encoder; "" in a new store
    folder: Path | None  # of the videos, absolute; None in a new store

    def __len__(self) -> int:
        """Return the number of videos."""

    def files(self) -> dict[str, FileState]:
        """Return the state of every file, unreadable ones included, by its path."""

    def close(self) -> None:
        """Release the store for other processes; uncommitted changes are dropped."""


class SearchableStore(Store, Protocol):
    """A store that a search reads."""

    def scan(self) -> tuple[list[str], VideoVectors] | None:
        """Return paths and vectors of all videos, or None if they are too far away to score each of them."""

    def candidates(self, query: Query, count: int) -> tuple[list[str], VideoVectors]:
        """Return paths and vectors of about `count` candidates to re-rank by their exact scores."""

    def example(self, path: str) -> VideoVectors:
        """Return the stored vectors of one video. Raises ValueError if it is not in the store."""


@runtime_checkable
class ChangingStore(Protocol):
    """A store that another process may update while it is searched."""

    def reopened(self) -> SearchableStore:
        """Return the store as it is now: this object if it has not changed since it was opened.

        Raises: OSError or ValueError if it can no longer be opened.
        """


class WritableStore(Store, Protocol):
    """A store that an update writes."""

    def begin(self, settings: dict[str, Any], fingerprint: str, folder: Path) -> None:
        """Set the encoder and the folder of the vectors that follow; `indexing.update` has checked that they fit."""

    def check(self) -> Check:
        """Compare the stored vectors with their checksums."""

    def put(self, path: str, state: FileState, vectors: VideoVectors | None) -> None:
        """Add or replace one file: the vectors of one video, or None for an unreadable file."""

    def remove(self, path: str) -> None:
        """Remove one file, if it is present."""

    def commit(self) -> None:
        """Make every `put` and `remove` durable."""

    def compact(self) -> None:
        """Drop the space of replaced and removed videos, if the store does not do so by itself."""
