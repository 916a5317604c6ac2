"""Read and hash one file, in a process of `scripts.check_data`; its other imports would take seconds there."""

from pathlib import Path

from dataloaders.video_decoding import VideoReader, VideoReadError, probe
from modules.whole_files import file_digest
from scripts.check_data.data_report import FileFacts, Span


def read_file(task: tuple[Path, list[Span]], extractor, max_frames: int, slice_framepos: int) -> FileFacts:
    """Read the spans of a file as training does, and then all of it: damage may lie between the sampled frames."""
    path, spans = task
    failures = {}
    for start, end in spans:
        try:
            extractor.read_frames(path, max_frames, slice_framepos, start_time=start, end_time=end)
        except VideoReadError as error:
            failures[start, end] = error.reason
    seconds, early_end, lost_frames = read_through(path)
    return FileFacts(seconds, failures, early_end, lost_frames)


def read_through(path: Path) -> tuple[float, str, str]:
    """Decode all frames; return `seconds`, `early_end` and `lost_frames` of `FileFacts`."""
    try:
        seconds = round(probe(path).duration, 3)
        with VideoReader(path) as video:
            for _ in video.read_in_order():
                pass
            return seconds, video.early_end, "; ".join(video.losses.notes())
    except VideoReadError:
        return 0.0, "", ""


def hash_file(path: Path) -> str | None:
    """Return the SHA-256 of the content; None if it cannot be read."""
    try:
        return file_digest("sha256", path)
    except OSError:
        return None
