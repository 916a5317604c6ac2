"""Decode frames of a video file by their number, and as few others as the file allows.

Frame n is the n-th frame of the whole file decoded from its start. `read_chosen` derives the numbers from the
presentation times of the packets and decodes only the groups of pictures with chosen frames, each from its key frame to
the chosen one, without the frames that no other frame refers to. `read_in_order` decodes everything, for files whose
packets do not determine the numbers of their frames.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from dataloaders.frame_sampling import FrameClock, FrameTimes, frame_times
from dataloaders.media_files import FORMAT_REFUSED, MAX_PIXELS, find_film, open_media
from dataloaders.video_damage import FrameLosses, VideoLength, report_damage

# Longer side by shorter side: once the shorter one is resized to `size`, the longer one has up to so many times that.
MAX_ASPECT = 256
# Packets are kept in memory up to this size; those of a larger file are read a second time to be decoded.
MAX_PACKET_BYTES = 1 << 27
# H.264 and HEVC reorder at most 16 frames, so that no packet is further than this from its place among the frames.
MAX_REORDERED = 32
# A declared frame rate may differ by this much from that of the timestamps, which may be rounded.
RATE_TOLERANCE = 0.01
# Codecs in which every packet is one frame; in others, such as MPEG-4 in AVI, it may be none or two.
ONE_FRAME_PER_PACKET = ("h264", "hevc", "vp9", "av1")
# A file is given up after this many errors of its container in a row, without a packet between them.
MAX_GAPS = 10

ROTATIONS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


class VideoReadError(RuntimeError):
    """A video file `path` has no readable frames, for a `reason`.

    A DataLoader re-raises an error of a worker with the worker's traceback as its only argument: `path` is then that
    text, which ends with path and reason.
    """

    def __init__(self, path, reason: str = ""):
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.reason else str(self.path)


class DoubtfulPackets(Exception):
    """The packets do not determine the numbers of the frames; the file has to be read in order."""


def never(second: float) -> bool:
    """Return False: the rule of a reading that ends with the file."""
    return False


class LateStop:
    """Ends a reading `MAX_REORDERED` frames after a rule is True, as later frames may be shown before earlier ones."""

    def __init__(self, is_enough: Callable[[float], bool]):
        self.is_enough = is_enough
        self.frames_beyond = 0

    def is_due(self, second: float) -> bool:
        """Return whether to stop after a frame with this second."""
        self.frames_beyond = self.frames_beyond + 1 if self.is_enough(second) else 0
        return self.frames_beyond > MAX_REORDERED


class PacketFacts(NamedTuple):
    """Attributes of a packet without its content; `pts` is its presentation time, `size` in bytes."""

    pts: int | None
    duration: int | None
    is_keyframe: bool
    size: int
    is_corrupt: bool
    is_discard: bool


@dataclass(frozen=True)
class VideoInfo:
    """Frames per second, number of frames, duration in seconds, size in pixels and codec of a video; 0 is unknown."""

    fps: float
    frames: int
    duration: float
    width: int
    height: int
    codec: str


def probe(path) -> VideoInfo:
    """Return the `VideoInfo` of a file from its packets, without decoding it.

    `duration` is the time from the first frame to the end of the last one, by their timestamps. `frames` is counted if
    every packet is one frame; otherwise it is the header's number, or that of the packets. `fps` is the declared rate,
    or frames divided by duration if it differs by more than a hundredth.

    Raises:
        VideoReadError: the file cannot be opened.
    """
    with VideoReader(path) as video:
        header = video.header
        try:
            video.read_packets()
            times = video.packet_times()
            frames = times.count
        except DoubtfulPackets:
            times = video.estimate_times()
            frames = header.frames or times.count
        if times.end <= 0:
            return replace(header, frames=frames)
        rate = frames / times.end
        is_declared = abs(header.fps / rate - 1) <= RATE_TOLERANCE if rate else True
        return replace(header, frames=frames, duration=times.end, fps=header.fps if is_declared else rate)


class VideoReader:
    """An open video file, closed by `with`; raises VideoReadError if the file is not a readable video.

    It reads on behind damaged packets. What the last pass over the file has lost is reported to `record_damage` when it
    is closed.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.reformatter = VideoReformatter()
        self.early_end = ""  # where the video ends and where it should; known after a pass to the end of the file
        self._open()

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, error_type, *_) -> None:
        self.container.close()
        if error_type is None and (notes := self.damage()):
            report_damage("; ".join(notes))

    def damage(self) -> list[str]:
        """Return notes on what the last pass over the file has lost, and on a video shorter than its header says."""
        return [*self.losses.notes(), *([self.early_end] if self.early_end else [])]

    def _open(self) -> None:
        self.container = open_container(self.path)
        try:
            self.stream = find_film(self.container)
            if self.stream is None:
                only_pictures = "its only video stream is an attached picture, such as the cover of a song"
                raise VideoReadError(
                    self.path, only_pictures if self.container.streams.video else "there is no video stream in it"
                )
            self.decoder = self.stream.codec_context
            self.header = self._read_header()
        except Exception as error:
            self.container.close()
            if isinstance(error, VideoReadError):
                raise
            raise VideoReadError(self.path, f"FFmpeg cannot describe it: {describe_error(error)}") from error
        # One thread: every DataLoader worker has a core of its own, and threads do not survive its fork.
        self.decoder.thread_count = 1
        self.decoder.options = {"max_pixels": str(MAX_PIXELS)}
        self.losses = FrameLosses(self.header.codec in ONE_FRAME_PER_PACKET)
        self.is_fresh = True

    def _read_header(self) -> VideoInfo:
        if self.decoder is None:
            raise VideoReadError(self.path, "FFmpeg has no decoder for its codec")
        width, height = self.decoder.width, self.decoder.height
        if width * height > MAX_PIXELS:
            raise VideoReadError(
                self.path, f"its frames have {width}x{height} pixels; at most {MAX_PIXELS} are decoded (8K video)"
            )
        tick = self.stream.time_base or 0
        # Without a frame rate, every tick of the container's clock counts as a frame, as in OpenCV's reader.
        fps = float(self.stream.average_rate or self.stream.guessed_rate or (1 / tick if tick else 0))
        if fps <= 0:
            raise VideoReadError(self.path, f"the header gives a frame rate of {fps} frames per second")
        if self.stream.duration is None:
            duration = (self.container.duration or 0) / av.time_base
        else:
            duration = float(self.stream.duration * tick)
        duration = max(0.0, duration)
        frames = self.stream.frames if self.stream.frames > 0 else round(duration * fps)
        return VideoInfo(fps, frames, duration, width, height, self.decoder.codec.canonical_name)

    def read_packets(self, is_enough: Callable[[float], bool] = never) -> int:
        """Read the packets and return the number of their frames.

        `is_enough` takes the second of each frame, in the order of the file; reading ends a little after it is True.

        Raises:
            DoubtfulPackets: they do not determine the order of the frames.
        """
        if self.header.codec not in ONE_FRAME_PER_PACKET:
            raise DoubtfulPackets
        self.packets: list[PacketFacts] = []
        self.held_packets: list[av.Packet] = []
        size = 0
        stop = LateStop(is_enough)
        first = None
        try:
            for packet in self._demux_from_start():
                if packet.dts is None and packet.size == 0:
                    break  # the end of the stream
                self.packets.append(PacketFacts(*(getattr(packet, name) for name in PacketFacts._fields)))
                size += packet.size
                if size > MAX_PACKET_BYTES:
                    self.held_packets.clear()
                else:
                    self.held_packets.append(packet)
                if packet.is_discard:
                    continue
                if packet.pts is None:
                    raise DoubtfulPackets
                first = packet.pts if first is None else first
                if stop.is_due(float((packet.pts - first) * self.stream.time_base)):
                    break
        except av.FFmpegError as error:
            raise DoubtfulPackets from error
        self.shown = presentation_order(self.packets, self.decoder.has_b_frames)
        return len(self.shown)

    def packet_times(self) -> FrameTimes:
        """Return when the frames are shown whose packets `read_packets` has read."""
        tick = float(self.stream.time_base)
        seconds = np.array([self.packets[place].pts for place in self.shown], dtype=np.float64) * tick
        return frame_times(seconds, (self.packets[self.shown[-1]].duration or 0) * tick if self.shown else 0.0)

    def estimate_times(self, is_enough: Callable[[float], bool] = never) -> FrameTimes:
        """Return when frames are shown if every packet is one frame, which is not certain; nothing is decoded.

        `is_enough` is that of `read_packets`.
        """
        clock, stop = FrameClock(1 / self.header.fps), LateStop(is_enough)
        tick = float(self.stream.time_base)
        for packet in self._demux_from_start():
            if packet.size == 0 or packet.is_discard:
                continue
            time = packet.dts if packet.pts is None else packet.pts
            second = clock.add(None if time is None else time * tick, (packet.duration or 0) * tick)
            if stop.is_due(second):
                break
        return clock.times()

    def _demux_from_start(self) -> Iterator[av.Packet]:
        """Yield the packets of the video from the first on; open the file again if some were read before."""
        if not self.is_fresh:
            self.container.close()
            self._open()
        self.is_fresh = False
        length = VideoLength(self)
        for packet in self._demux(() if not self.stream.duration else (self.stream,)):
            length.add(packet)
            if packet.stream_index == self.stream.index:
                yield packet
        self.early_end = length.early_end()

    def _demux(self, streams: tuple[av.stream.Stream, ...]) -> Iterator[av.Packet]:
        """Yield the packets of these streams, or of all; damaged places are counted and passed over."""
        gaps_in_a_row = 0
        while gaps_in_a_row <= MAX_GAPS:
            try:
                for packet in self.container.demux(*streams):
                    if packet.size == 0 and packet.dts is None:
                        continue  # for the decoder, at the end of the file
                    gaps_in_a_row = 0
                    yield packet
                return
            except IndexError:
                gaps_in_a_row += 1  # not of the file: PyAV fails at its end if a stream began behind the header
            except (OSError, MemoryError) as error:
                raise VideoReadError(self.path, describe_error(error)) from error
            except Exception:
                gaps_in_a_row += 1
                self.losses.gaps += 1

    def read_chosen(self, numbers: list[int]) -> Iterator[av.VideoFrame]:
        """Yield the frames of the given increasing numbers; call `read_packets` first.

        Raises:
            DoubtfulPackets: the decoder disagrees with the packets; possibly after some frames.
        """
        packets = iter(self.held_packets) if self.held_packets else self._demux_from_start()
        place = 0
        for start, stop, times in self._runs(numbers):
            wanted = set(times)
            latest = -math.inf
            key = self.packets[start]
            key_is_due = not key.is_discard
            run = islice(packets, start - place, stop - place)
            place = stop
            for frame in self._decode_run(run, wanted):
                # The two fields of an interlaced frame may be two packets.
                if frame.pts is None or frame.pts <= latest or frame.is_corrupt or frame.interlaced_frame:
                    raise DoubtfulPackets
                # Encoders with periodic intra refresh mark frames as key frames that need the ones before them; the
                # decoder drops those.
                if key_is_due and frame.pts > key.pts:
                    raise DoubtfulPackets
                key_is_due = key_is_due and frame.pts < key.pts
                latest = frame.pts
                if latest in wanted:
                    wanted.remove(latest)
                    yield frame
            if wanted:
                raise DoubtfulPackets

    def _runs(self, numbers: list[int]) -> list[tuple[int, int, list[int]]]:
        """Return the ranges of packets to decode: first, end, and the presentation times of the chosen frames."""
        keys = [place for place, packet in enumerate(self.packets) if packet.is_keyframe]
        runs = []
        for number in numbers:
            place = self.shown[number]
            time = self.packets[place].pts
            key = bisect_right(keys, place) - 1
            # A frame that follows a key frame in the file but is shown before it may refer to frames before both.
            while self.packets[keys[key]].pts > time:
                key -= 1
            if runs and keys[key] < runs[-1][1]:
                start, stop, times = runs.pop()
                runs.append((start, max(stop, place + 1), [*times, time]))
            else:
                runs.append((keys[key], place + 1, [time]))
        return runs

    def _decode_run(self, packets: Iterable[av.Packet], wanted: set[int]) -> Iterator[av.VideoFrame]:
        # If the times give frames in the order of the file, all are decoded to check that order.
        others = "DEFAULT" if self.shown == sorted(self.shown) else "NONREF"
        self.decoder.flush_buffers()
        try:
            for packet in packets:
                self.decoder.skip_frame = "DEFAULT" if packet.pts in wanted else others
                yield from self.decoder.decode(packet)
            yield from self.decoder.decode(None)
        except Exception as error:
            raise DoubtfulPackets from error

    def read_in_order(self) -> Iterator[av.VideoFrame]:
        """Yield all frames from the first on; packets that cannot be decoded are counted and passed over."""
        for packet in self._demux_from_start():
            if packet.size:  # an empty one would end the stream for the decoder
                self.losses.add_packet(packet)
                yield from self._decode(packet)
        yield from self._decode(None)

    def _decode(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        try:
            frames = self.decoder.decode(packet)
        except MemoryError as error:
            raise VideoReadError(self.path, "there is not enough memory to decode it") from error
        except Exception:  # whatever a damaged packet makes of FFmpeg or PyAV
            self.losses.errors += 1
            return []
        for frame in frames:
            if packet is None:
                frame.time_base = self.stream.time_base  # PyAV takes it from the packet
            self.losses.add_frame(frame)
        return frames

    def to_image(self, frame: av.VideoFrame) -> Image.Image:
        """Return the frame in RGB, upright."""
        longer, shorter = max(frame.width, frame.height), min(frame.width, frame.height)
        if longer > MAX_ASPECT * shorter:
            raise VideoReadError(
                self.path, f"a frame of {frame.width}x{frame.height} has an aspect ratio above {MAX_ASPECT}"
            )
        try:
            # Bicubic, and blue first: the pixels of OpenCV's reader, which conversion to RGB misses in some formats.
            converted = self.reformatter.reformat(frame, format="bgr24", interpolation="BICUBIC", threads=1)
        except Exception as error:
            raise VideoReadError(self.path, f"{frame.format.name} pixels do not convert to RGB: {error}") from error
        plane = converted.planes[0]
        image = Image.frombuffer("RGB", (frame.width, frame.height), plane, "raw", "BGR", plane.line_size, 1)
        rotation = ROTATIONS.get(round(frame.rotation) % 360)
        return image if rotation is None else image.transpose(rotation)


def open_container(path: Path) -> av.container.InputContainer:
    try:
        if path.is_dir() or path.stat().st_size == 0:
            raise VideoReadError(path, "this is a folder" if path.is_dir() else "the file is empty (0 bytes)")
        return open_media(path)
    except VideoReadError:
        raise
    except av.error.ArgumentError as error:
        raise VideoReadError(path, FORMAT_REFUSED) from error
    except (av.error.InvalidDataError, av.error.EOFError) as error:
        raise VideoReadError(path, "FFmpeg finds no video in it: no video file, or one that is cut off") from error
    except Exception as error:
        raise VideoReadError(path, describe_error(error)) from error


def describe_error(error: Exception) -> str:
    return getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"


def presentation_order(packets: list[PacketFacts], reordered: bool) -> list[int]:
    """Return the places of the packets in the order of presentation, without those that an edit list hides."""
    if not packets or not packets[0].is_keyframe or any(packet.is_corrupt or not packet.size for packet in packets):
        raise DoubtfulPackets
    times = [packet.pts for packet in packets]
    if None in times or len(set(times)) < len(times) or min(times) < times[0]:
        raise DoubtfulPackets
    # A container without presentation times, such as AVI, numbers the packets in the order of the file.
    if reordered and times == sorted(times):
        raise DoubtfulPackets
    shown = np.array([place for place, packet in enumerate(packets) if not packet.is_discard], dtype=np.int64)
    order = np.argsort(np.array(times, dtype=np.int64)[shown], kind="stable")
    # A jump of the timestamps: the order of the decoder is another one.
    if len(order) and np.abs(order - np.arange(len(order))).max() > MAX_REORDERED:
        raise DoubtfulPackets
    return shown[order].tolist()
