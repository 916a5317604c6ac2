"""Draw videos of moving shapes, one after the other on a dull background, and encode them as mp4.

`scripts.miniature.msrvtt` decides the content of each video and relies on the same pixels for the same settings: if the
drawing changes here, increase `FORMAT` there. A `size` is (width, height) in pixels, a frame (H, W, 3) uint8 RGB.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

COLOURS = {
    "red": (225, 30, 30),
    "green": (30, 180, 50),
    "blue": (40, 70, 240),
    "yellow": (245, 230, 40),
    "purple": (165, 40, 215),
    "orange": (250, 135, 20),
    "cyan": (40, 220, 225),
    "white": (250, 250, 250),
}
EMPTY_KINDS = ("black", "grey", "noise")


def polygon(corners: int, turn: float = 0.0) -> np.ndarray:
    """Return the corners of a regular polygon of radius 1; the first points up, rotated by `turn` full turns."""
    angles = 2 * np.pi * (np.arange(corners) / corners + turn)
    return np.stack([np.sin(angles), -np.cos(angles)], axis=1)


def star_polygon() -> np.ndarray:
    """Return a five-pointed star of radius 1."""
    points = polygon(10)
    points[1::2] *= 0.42
    return points


def cross_polygon() -> np.ndarray:
    """Return a plus sign with arms of length 1."""
    arm = 0.3
    return np.array([(-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm),
                     (arm, 1), (-arm, 1), (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm)])  # fmt: skip


# Outlines about the origin, y down; a second outline is a hole.
SHAPES = {
    "circle": (polygon(40),),
    "square": (polygon(4, turn=1 / 8) * 1.15,),
    "triangle": (polygon(3) * 1.2,),
    "star": (star_polygon() * 1.2,),
    "cross": (cross_polygon() * 1.1,),
    "ring": (polygon(40) * 1.1, polygon(40) * 0.62),
}
ROUND_SHAPES = ("circle", "ring")


@dataclass(frozen=True)
class Segment:
    """The content of a video from second `start` to second `end`; None for an empty segment."""

    start: int
    end: int
    colour: str | None = None
    shape: str | None = None
    motion: str | None = None


def draw_background(size: tuple[int, int], pixels: np.random.Generator) -> np.ndarray:
    """Return (H, W, 3) float: a dull, dark tint with a gradient and soft spots."""
    width, height = size
    tint = pixels.uniform(35, 95) + pixels.uniform(-12, 12, size=3)
    across = np.linspace(-1, 1, width)[None, :] * pixels.uniform(-18, 18)
    down = np.linspace(-1, 1, height)[:, None] * pixels.uniform(-18, 18)
    spots = cv2.resize(pixels.uniform(-12, 12, size=(4, 4)), size, interpolation=cv2.INTER_CUBIC)
    return tint + (across + down + spots)[:, :, None]


def draw_empty(size: tuple[int, int], frames: int, pixels: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield frames without content: black, plain grey, or noise."""
    width, height = size
    kind = EMPTY_KINDS[pixels.integers(len(EMPTY_KINDS))]
    shade = {"black": 0, "grey": int(pixels.integers(70, 150)), "noise": 0}[kind]
    for _ in range(frames):
        frame = np.full((height, width, 3), shade, np.uint8)
        if kind == "noise":
            frame[:] = pixels.integers(0, 256, size=(height, width, 1), dtype=np.uint8)
        yield frame


def place(motion: str, progress: float) -> tuple[float, float, float, float]:
    """Return centre (x, y) and radius in half frame heights, and rotation in radians, at `progress` from 0 to 1.

    The first frame of a segment already shows its motion: a shape that moves left starts on the right.
    """
    reach = 0.22 * (1 - 2 * progress)
    x, y, radius, turn = 0.0, 0.0, 0.62, 0.0
    if motion in ("left", "right"):
        x = reach if motion == "left" else -reach
    elif motion in ("up", "down"):
        y = reach if motion == "up" else -reach
    elif motion in ("grows", "shrinks"):
        radius = 0.45 + 0.35 * (progress if motion == "grows" else 1 - progress)
    elif motion == "spins":
        turn = 0.5 + 2 * math.pi * progress
    return x, y, radius, turn


def draw_shape(segment: Segment, size: tuple[int, int], fps: int, pixels: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the frames of a segment: its shape in motion on a still background, roughly within the central square."""
    background = draw_background(size, pixels).clip(0, 255).astype(np.uint8)
    colour = np.clip(np.array(COLOURS[segment.colour]) + pixels.uniform(-12, 12, size=3), 0, 255).tolist()
    shift = pixels.uniform(-0.1, 0.1, size=2)
    scale = pixels.uniform(0.88, 1.12)
    half = min(size) / 2
    centre = np.array(size) / 2 - 0.5
    frames = (segment.end - segment.start) * fps
    for index in range(frames):
        x, y, radius, turn = place(segment.motion, index / frames)
        rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        origin = centre + half * (np.array([x, y]) + shift)
        # cv2 takes corners as integers; the last 4 bits are sixteenths of a pixel.
        outlines = [
            np.round((origin + half * radius * scale * outline @ rotation) * 16).astype(np.int32)
            for outline in SHAPES[segment.shape]
        ]
        frame = background.copy()
        cv2.fillPoly(frame, outlines, colour, lineType=cv2.LINE_AA, shift=4)
        yield frame


def draw_frames(
    segments: Sequence[Segment], size: tuple[int, int], fps: int, seed: Sequence[int]
) -> Iterator[np.ndarray]:
    """Yield all frames of a video, (H, W, 3) uint8 RGB; the same arguments give the same pixels."""
    pixels = np.random.default_rng(seed)
    for segment in segments:
        if segment.colour:
            yield from draw_shape(segment, size, fps, pixels)
        else:
            yield from draw_empty(size, (segment.end - segment.start) * fps, pixels)


def write_video(path: Path, frames: Iterator[np.ndarray], size: tuple[int, int], fps: int) -> None:
    """Encode the frames as MPEG-4; the file appears under its name only when it is complete."""
    unfinished = path.with_name(f"unfinished_{path.name}")
    writer = cv2.VideoWriter(str(unfinished), cv2.VideoWriter_fourcc(*"mp4v"), fps, size)
    if not writer.isOpened():
        raise OSError(f"OpenCV cannot write mp4 files here: {unfinished}")
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    unfinished.replace(path)
