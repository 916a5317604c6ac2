"""Draw the parts of a token-wise score: words on the left, frames on the right, lines between best matches.

Everything is placed in inches from the upper left corner, one row per word and one per frame, so that nothing overlaps
however many there are. No display is needed.
"""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline

from modules.explanation import END_WORD, START_WORD, Explanation

WORD_COLOUR, FRAME_COLOUR = "#2b6cb0", "#dd6b20"
INK, PALE_INK, RULE = "#1a202c", "#8290a3", "#cbd5e0"
MISSING_SIGN = "□"  # in place of a character that is not in the font
LONGEST_WORD = 32  # characters; a longer word is cut

MARGIN, HEADER, GAP = 0.3, 1.05, 0.14
BAR, NUMBER = 1.1, 0.5  # widths of the longest bar, and of the number beside it
LINES = 3.2  # width of the space between words and frames
WORD_ROW, FRAME_ROW = (0.26, 0.42), (0.42, 1.15)  # least and greatest heights
FRAMES_HEIGHT = 9.0  # of all frames together, above which they get smaller
DOTS_PER_INCH = 150
TEXT_SIZE, NUMBER_SIZE = 11, 8  # points


def draw_explanation(words: Sequence[str], frames: np.ndarray, seconds: np.ndarray, explanation: Explanation) -> Figure:
    """Return the figure of one score: T words, frames uint8 (V,3,H,W) shown at `seconds` (V,), and the score's parts.

    A bar is a weight; the dotted line is the uniform weight. Lines join each word to its best frame and each frame to
    its best word; the wider and darker, the more this match adds to the score.
    """
    texts = [drawable(word) for word in words]
    frame_row = min(max(FRAMES_HEIGHT / len(frames), FRAME_ROW[0]), FRAME_ROW[1])
    height = max(len(words) * WORD_ROW[0], len(frames) * frame_row)
    word_places = row_places(len(words), height, WORD_ROW[1])
    frame_places = row_places(len(frames), height, FRAME_ROW[1])
    side = 0.92 * min(FRAME_ROW[1], height / len(frames))  # of a frame

    word_bar = MARGIN + NUMBER + BAR
    line_start = word_bar + max(map(text_width, texts)) + 2 * GAP
    line_end = line_start + LINES
    frame_bar = line_end + side + NUMBER + 2 * GAP
    width = frame_bar + BAR + NUMBER + MARGIN
    axes = blank_page(width, HEADER + height + MARGIN)

    draw_header(axes, explanation.score, {"words": word_bar, "lines": (line_start + line_end) / 2, "frames": frame_bar})
    draw_bars(axes, explanation.text_weights, word_places, word_bar, -BAR, WORD_COLOUR)
    draw_bars(axes, explanation.video_weights, frame_places, frame_bar, BAR, FRAME_COLOUR)
    draw_lines(axes, explanation, (line_start, word_places), (line_end, frame_places))
    for word, text, place in zip(words, texts, word_places, strict=True):
        colour = PALE_INK if word in (START_WORD, END_WORD) else INK
        write(axes, line_start - GAP, place, text, ha="right", color=colour)
    for frame, second, place in zip(frames, seconds, frame_places, strict=True):
        edges = (line_end, line_end + side, place + side / 2, place - side / 2)
        axes.imshow(frame.transpose(1, 2, 0), extent=edges, aspect="auto", zorder=3)
        write(axes, line_end + side + GAP, place, f"{second:.1f} s", size=NUMBER_SIZE, color=PALE_INK)
    axes.set(xlim=(0, width), ylim=(HEADER + height + MARGIN, 0))  # last, since imshow changes them
    return axes.figure


def blank_page(width: float, height: float) -> Axes:
    """Return axes without ticks that fill a page of this size in inches."""
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, facecolor="white")
    figure.suppressComposite = True  # an SVG keeps each frame as a picture of its own
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    return axes


def row_places(rows: int, height: float, greatest: float) -> np.ndarray:
    """Return the centres (rows,) of equal rows of at most `greatest`, centred in `height` below the header."""
    row = min(greatest, height / rows)
    return HEADER + height / 2 + row * (np.arange(rows) - (rows - 1) / 2)


def write(axes: Axes, x: float, y: float, text: str, size: float = TEXT_SIZE, **style) -> None:
    """Write a line of text literally: a dollar sign does not begin a formula."""
    axes.text(x, y, text, size=size, va="center_baseline", parse_math=False, zorder=4, **style)


def draw_header(axes: Axes, score: float, centres: dict[str, float]) -> None:
    """Write the score, the names of the columns, and the direction that each colour of lines stands for."""
    write(axes, centres["lines"], 0.35, f"score {score:.3f}", size=15, ha="center", weight="bold", color=INK)
    for y, text, colour in (
        (0.63, "word → its best frame", WORD_COLOUR),
        (0.82, "frame → its best word", FRAME_COLOUR),
    ):
        write(axes, centres["lines"], y, text, size=9, ha="center", color=colour)
    write(axes, centres["words"], 0.82, "weight of the word", size=9, ha="right", color=WORD_COLOUR)
    write(axes, centres["frames"], 0.82, "weight of the frame", size=9, ha="left", color=FRAME_COLOUR)


def draw_bars(axes: Axes, weights: torch.Tensor, places: np.ndarray, start: float, length: float, colour: str) -> None:
    """Draw horizontal bars with their percentages; `length` is the longest one's, negative for bars to the left.

    The dotted line is at 1 / their number.
    """
    scale = length / weights.max().item()
    row = places[1] - places[0] if len(places) > 1 else WORD_ROW[1]
    axes.barh(places, (weights * scale).numpy(), height=min(0.6 * row, 0.2), left=start, color=colour, alpha=0.85)
    for place, weight in zip(places, weights.tolist(), strict=True):
        number = start + length + np.copysign(NUMBER, length)
        side = "left" if length < 0 else "right"
        write(axes, number, place, f"{weight:.1%}", size=NUMBER_SIZE, ha=side, color=PALE_INK)
    alike, ends = start + scale / len(weights), (places[0] - row / 2, places[-1] + row / 2)
    axes.vlines(alike, *ends, color=INK, linewidth=0.8, linestyle=":", alpha=0.6)


def draw_lines(
    axes: Axes, explanation: Explanation, words: tuple[float, np.ndarray], frames: tuple[float, np.ndarray]
) -> None:
    """Draw curves between (x, places) of the words and of the frames, one per word and one per frame."""
    (left, word_places), (right, frame_places) = words, frames
    matches = [(word, frame) for word, frame in enumerate(explanation.best_frame.tolist())]
    matches += [(word, frame) for frame, word in enumerate(explanation.best_word.tolist())]
    parts = torch.cat([explanation.word_parts, explanation.frame_parts])
    strengths = (parts / parts.max().clamp(min=1e-12)).clamp(min=0).tolist()  # what takes away is drawn as hardly there
    colours = [WORD_COLOUR] * len(word_places) + [FRAME_COLOUR] * len(frame_places)
    starts = fanned([word for word, _ in matches], [frame for _, frame in matches], word_places)
    ends = fanned([frame for _, frame in matches], [word for word, _ in matches], frame_places)
    middle = (left + right) / 2
    for start, end, strength, colour in zip(starts, ends, strengths, colours, strict=True):
        curve = Outline(
            [(left, start), (middle, start), (middle, end), (right, end)],
            [Outline.MOVETO, Outline.CURVE4, Outline.CURVE4, Outline.CURVE4],
        )
        width, opacity = 0.4 + 4.6 * strength, 0.2 + 0.65 * strength
        axes.add_patch(PathPatch(curve, fill=False, edgecolor=colour, linewidth=width, alpha=opacity))


def fanned(rows: Sequence[int], others: Sequence[int], places: np.ndarray) -> np.ndarray:
    """Return where lines meet their rows: side by side over half a row's height, in the order of their other ends."""
    height = places[1] - places[0] if len(places) > 1 else WORD_ROW[1]
    meeting = np.empty(len(rows))
    for row in set(rows):
        lines = sorted((line for line in range(len(rows)) if rows[line] == row), key=lambda line: others[line])
        meeting[lines] = places[row] + height / 2 * ((np.arange(len(lines)) + 0.5) / len(lines) - 0.5)
    return meeting


def drawable(word: str) -> str:
    """Return the word with a sign for each character that is not in the font, cut if it is too long."""
    known = text_font().get_charmap()
    text = "".join(character if ord(character) in known else MISSING_SIGN for character in word)
    return text if len(text) <= LONGEST_WORD else text[: LONGEST_WORD - 1] + "…"


def text_width(text: str) -> float:
    """Return the width of a text in inches at the size of the words."""
    font = text_font()
    font.set_size(TEXT_SIZE, DOTS_PER_INCH)
    font.set_text(text)
    return font.get_width_height()[0] / 64 / DOTS_PER_INCH  # FreeType counts in 64ths of a dot


def text_font():
    """Return the font that matplotlib uses."""
    return get_font(findfont(FontProperties()))
