"""Clips whose grey level is their second, and damage to one of their packets."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

FPS, SECONDS, STEP = 10, 20, 10


def picture(second: int, width: int = 64, height: int = 48) -> np.ndarray:
    """A picture of one grey level, `STEP` for each second, with a texture that makes its packets large."""
    image = np.full((height, width, 3), STEP * second, np.uint8)
    image[:16, :16] = np.random.default_rng(second).integers(0, 255, (16, 16, 3))
    return image


def write_seconds(path: Path, codec: str, **options) -> Path:
    """A clip of `SECONDS`, each of `FPS` equal pictures and with a key frame of its own."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size = FPS
        for number in range(FPS * SECONDS):
            frame = av.VideoFrame.from_ndarray(picture(number // FPS), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def damage(path: Path, frame: int, kept: int = 5) -> Path:
    """Overwrite a packet behind its first `kept` bytes, which are the length and the type of a NAL unit of H.264."""
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    place, size = packets[frame]
    content = bytearray(path.read_bytes())
    content[place + kept : place + size] = np.random.default_rng(1).bytes(size - kept)
    path.write_bytes(content)
    return path
