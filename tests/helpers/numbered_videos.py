"""Videos whose frames show their own number, written by PyAV and read by OpenCV."""

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

BITS = 10
MILLISECOND = Fraction(1, 1000)


def numbered_picture(number: int, width: int, height: int) -> np.ndarray:
    """Return an (H, W, 3) frame with the binary digits of `number` as white and black bars, the lowest at the left."""
    bars = [235 if number >> bit & 1 else 20 for bit in range(BITS)]
    columns = np.arange(width) * BITS // width
    return np.broadcast_to(np.array(bars, np.uint8)[columns][None, :, None], (height, width, 3)).copy()


def read_numbers(path: Path) -> list[int]:
    """Read the number of every frame with OpenCV; frames may have any size."""
    capture, numbers = cv2.VideoCapture(str(path)), []
    while True:
        readable, picture = capture.read()
        if not readable:
            return numbers
        centres = [int((bit + 0.5) * picture.shape[1] / BITS) for bit in range(BITS)]
        row = picture[picture.shape[0] // 2, centres].mean(axis=1)
        numbers.append(sum(1 << bit for bit in range(BITS) if row[bit] > 128))


def write_numbered(
    path: Path, times: list[float], rate=30, width: int = 160, height: int = 120, codec: str = "mpeg4",
    clock: Fraction | None = None, sound: bool = False, options: dict | None = None,
) -> Path:  # fmt: skip
    """A video whose frame i shows i at `times[i]` seconds, rounded to `clock` (or to the frame rate)."""
    clock = clock or 1 / Fraction(rate)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, "yuv420p", 2_000_000
        stream.codec_context.time_base = clock
        audio = container.add_stream("aac", rate=8000) if sound else None
        for number, seconds in enumerate(times):
            frame = av.VideoFrame.from_ndarray(numbered_picture(number, width, height), format="rgb24")
            frame.pts, frame.time_base = round(seconds / clock), clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if audio:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.sample_rate, silence.pts = 8000, 0
            container.mux(audio.encode(silence))
            container.mux(audio.encode())
    return path


def steady(count: int, rate) -> list[float]:
    return [number / float(rate) for number in range(count)]
