"""Read and hash one file, in a process of `scripts.check_data`; its other imports would take seconds there."""

import math
from collections.abc import Iterator
from pathlib import Path

import av

from dataloaders.video_decoding import VideoReader, VideoReadError, probe
from modules.whole_files import file_digest
from scripts.check_data.data_report import FileFacts, Span

LOSS_TOLERANCE = 1.0  # seconds, the interval of sampling


def read_file(task: tuple[Path, list[Span]], extractor, max_frames: int, slice_framepos: int) -> FileFacts:
    """Read the spans of a file as training does."""
    path, spans = task
    failures = {}
    for start, end in spans:
        try:
            extractor.read_frames(path, max_frames, slice_framepos, start_time=start, end_time=end)
        except VideoReadError as error:
            failures[start, end] = error.reason
    seconds, early_end = measure_length(path)
    return FileFacts(seconds, failures, early_end)


def measure_length(path: Path) -> tuple[float, str]:
    """Return `seconds` and `early_end` of `FileFacts` without decoding."""
    try:
        seconds = round(probe(path).duration, 3)
        with VideoReader(path) as video:
            packets = list(read_packets(video))
            start = min((begin for is_video, begin, _ in packets if is_video), default=0.0)
            promised = promised_end(video, start)
            # If the video has no length of its own, the file's may be that of its sound.
            ends = [end for is_video, _, end in packets if is_video or not video.stream.duration]
    except VideoReadError:
        return 0.0, ""
    end = max(ends, default=0.0)
    is_cut = end < promised - LOSS_TOLERANCE
    return seconds, f"it ends at second {end:.1f}, not {promised:.1f} as its header says" if is_cut else ""


def read_packets(video: VideoReader) -> Iterator[tuple[bool, float, float]]:
    """Yield whether a packet is the video's, and its first and last second, for all packets up to the first damage.

    A packet without a time, as in formats without an index, ends at infinity.
    """
    try:
        for packet in video.container.demux():
            if packet.size > 0:
                time = packet.dts if packet.pts is None else packet.pts
                begin, end = (0, math.inf) if time is None else (time, time + (packet.duration or 0))
                tick = float(packet.time_base)
                yield packet.stream_index == video.stream.index, begin * tick, end * tick
    except av.FFmpegError:
        return


def promised_end(video: VideoReader, start: float) -> float:
    """Return the video's end in seconds according to the header, for a first frame at `start`; 0 if it is unknown."""
    if not video.stream.duration:
        return (video.container.duration or 0) / av.time_base  # in Matroska and WebM, which count from 0
    seconds = float(video.stream.duration * video.stream.time_base)
    # FFmpeg shortens the duration of an AVI file that is cut off, but not its number of frames. In other formats it
    # shortens neither, and the number may include frames that an mp4's edit list hides.
    if video.container.format.name == "avi":
        seconds = max(seconds, video.stream.frames / video.header.fps)
    return start + seconds


def hash_file(path: Path) -> str | None:
    """Return the SHA-256 of the content; None if it cannot be read."""
    try:
        return file_digest("sha256", path)
    except OSError:
        return None
