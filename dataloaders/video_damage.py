"""Count what a reading of a video loses, and collect the notes on it: `with record_damage() as notes: ...`.

A note is text for people. Decoding continues behind a damage, as players do, so a damaged video still has frames; the
notes are how its reader learns that some are lost.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import av

# Seconds that a video may be shorter than its header says: frames are sampled once a second, and headers are rounded.
LENGTH_TOLERANCE = 1.0

_recorders: ContextVar[tuple[list[str], ...]] = ContextVar("recorders", default=())


@contextmanager
def record_damage() -> Iterator[list[str]]:
    """Give a list that receives a note for each damaged video that this thread reads within the block.

    Blocks may be nested: each of them receives the note.
    """
    notes: list[str] = []
    token = _recorders.set((*_recorders.get(), notes))
    try:
        yield notes
    finally:
        _recorders.reset(token)


def report_damage(note: str) -> None:
    """Add a note to the lists of all enclosing `record_damage`; once, however often the video is read."""
    for notes in _recorders.get():
        if note not in notes:
            notes.append(note)


class FrameLosses:
    """Counts the frames that one pass over a video's packets loses.

    Where a codec has one frame per packet, frames that a decoder leaves out without an error are counted too.
    """

    def __init__(self, one_frame_per_packet: bool):
        self.errors = 0  # packets that the decoder refused
        self.concealed = 0  # frames with decoding errors
        self.gaps = 0  # places at which the container could not be read
        self._counts_packets = one_frame_per_packet
        self._packets = self._frames = 0
        self._first_time: int | None = None
        self._has_begun = False

    def add_packet(self, packet: av.Packet) -> None:
        """Count a packet that the decoder gets."""
        if not self._has_begun:
            # Frames before the first key frame, and those that refer to them, are the price of a cut.
            if not packet.is_keyframe:
                return
            self._has_begun, self._first_time = True, packet.pts
        if not packet.is_discard and not self._is_before_begin(packet.pts):
            self._packets += 1

    def add_frame(self, frame: av.VideoFrame) -> None:
        """Count a frame that the decoder gives."""
        self.concealed += frame.is_corrupt
        if frame.interlaced_frame:
            self._counts_packets = False  # its two fields may be two packets
        if self._has_begun and not self._is_before_begin(frame.pts):
            self._frames += 1

    def _is_before_begin(self, time: int | None) -> bool:
        return time is not None and self._first_time is not None and time < self._first_time

    def notes(self) -> list[str]:
        """Return the counts above 0 as text; to be called after the last frame."""
        left_out = self._packets - self._frames if self._counts_packets else 0
        return [
            f"{plural(number, noun)} {predicate}"
            for number, noun, predicate in (
                (max(self.errors, left_out), "frame", "could not be decoded"),
                (self.concealed, "frame", "decoded with errors"),
                (self.gaps, "place", "in the file could not be read"),
            )
            if number > 0
        ]


class OpenVideo(Protocol):
    """The parts of a `VideoReader` that state its length."""

    container: av.container.InputContainer
    stream: av.VideoStream
    header: Any


class VideoLength:
    """Measures where a video ends from the packets of its file, against the end that its header promises."""

    def __init__(self, video: OpenVideo):
        self.video = video
        self.begin, self.end = math.inf, 0.0

    def add(self, packet: av.Packet) -> None:
        """Take the time of a packet of any stream; without one, where the file ends is unknown."""
        is_film = packet.stream_index == self.video.stream.index
        time = packet.dts if packet.pts is None else packet.pts
        tick = float(packet.time_base)
        if is_film:
            self.begin = min(self.begin, 0.0 if time is None else time * tick)
        # Where the video states no length of its own, the file's may be that of its sound.
        if is_film or not self.video.stream.duration:
            self.end = max(self.end, math.inf if time is None else (time + (packet.duration or 0)) * tick)

    def early_end(self) -> str:
        """Return where the video ends and where it should, if that is earlier; to be called after the last packet."""
        begin = self.begin if self.begin < math.inf else 0.0
        return describe_early_end(self.end, promised_end(self.video, begin))


def promised_end(video: OpenVideo, begin: float) -> float:
    """Return the second at which the header says that a video ends whose first frame has `begin`; 0 if it is silent."""
    container, stream = video.container, video.stream
    if not stream.duration:
        return (container.duration or 0) / av.time_base  # of Matroska and WebM, which count from 0
    seconds = float(stream.duration * stream.time_base)
    # FFmpeg shortens the duration of an AVI file that is cut, but not its number of frames; elsewhere it shortens
    # neither, and the number may count frames that an mp4's edit list hides.
    if container.format.name == "avi":
        seconds = max(seconds, stream.frames / video.header.fps)
    return begin + seconds


def describe_early_end(end: float, promised: float) -> str:
    """Return both seconds as text if a video ends early, else an empty text."""
    if end >= promised - LENGTH_TOLERANCE:
        return ""
    return f"it ends at second {end:.1f}, not {promised:.1f} as its header says"


def plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
