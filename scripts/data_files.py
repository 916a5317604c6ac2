"""What a process of `scripts.check_data` does with one file; apart from the script, whose imports take seconds."""

import hashlib
from pathlib import Path

from dataloaders.rawvideo_util import VideoReadError, probe
from scripts.data_report import FileFacts, Span


def read_file(task: tuple[Path, list[Span]], extractor, max_frames: int, slice_framepos: int) -> FileFacts:
    """Read the spans of a file as training does."""
    path, spans = task
    failures = {}
    for start, end in spans:
        try:
            extractor.read_frames(path, max_frames, slice_framepos, start_time=start, end_time=end)
        except VideoReadError as error:
            failures[start, end] = error.reason
    return FileFacts(read_seconds(path), failures)


def read_seconds(path: Path) -> float:
    """The length of a video; 0 where it cannot be known."""
    try:
        return probe(path).duration
    except VideoReadError:
        return 0.0


def hash_file(path: Path) -> str | None:
    """SHA-256 of the content; None where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()
