"""Read the data of a report: numbers, curves, ranks, and worst queries with frames of the videos."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from dataloaders.rawvideo_util import RawVideoExtractor, VideoReadError, encode_jpeg
from engine.run_files import GALLERY_FILE, RANKS_FILE, TOP_COUNT, read_metrics, read_ranks
from engine.run_log import read_lines
from metrics import TEXT_TO_VIDEO
from modules.checkpoint import read_flags, read_frame_sampling

Curve = tuple[list[float], list[float]]
"""Positions on the horizontal axis, and values."""

BIN_ENDS = (1, 5, 10, 50, 100, 500, 1000, 5000, 10000)  # last rank of each bin
FRAMES_SHOWN = 4
FRAME_SIZE = 96  # pixels
JPEG_QUALITY = 80
FRAMERATE = 4  # samples per second, so that a clip of one second fills the row of frames


@dataclass(frozen=True)
class Run:
    """An output folder: its name in the report, `metrics.json`, the lines of `metrics.jsonl`, and `flags.json`."""

    folder: Path
    name: str
    metrics: dict
    lines: list[dict]
    flags: dict

    @property
    def is_training(self) -> bool:
        """False for an evaluation alone."""
        return self.metrics["protocol"]["epoch_picked_on"] is not None

    def step_curves(self, key: str) -> list[Curve]:
        """Return values of the training's log lines over optimizer steps: no curve, one, or the highest and the lowest.

        There are two if a line holds several values, such as learning rates. A non-finite value is NaN.
        """
        lines = [line for line in self.lines if line["kind"] == "step"]
        values = [line.get(key) if isinstance(line.get(key), list) else [line.get(key)] for line in lines]
        steps = [line["step"] for line in lines]
        finite = [[math.nan if value is None else value for value in several] for several in values]
        highest, lowest = ([choose(several) for several in finite] for choose in (max, min))
        if not lines:
            return []
        return (
            [(steps, highest)] if all(len(several) == 1 for several in finite) else [(steps, highest), (steps, lowest)]
        )

    def epoch_losses(self) -> Curve:
        """Return the mean loss of every epoch over optimizer steps."""
        lines = [line for line in self.lines if line["kind"] == "epoch"]
        return [line["step"] for line in lines], [math.nan if line["loss"] is None else line["loss"] for line in lines]

    def recalls(self, key: str, name: str) -> Curve:
        """Return a training's recall such as R1, in percent, over epochs from 0, for a direction of `metrics.json`."""
        lines = [line for line in self.lines if line["kind"] == "evaluation" and line["step"] is not None]
        if not lines and self.is_training:
            split = self.metrics["protocol"]["epoch_picked_on"]
            lines = [entry for entry in self.metrics["history"] if entry["split"] == split]
        return [line["epoch"] for line in lines], [line[key][name] for line in lines]


def read_runs(folders: list[Path]) -> list[Run]:
    """Return the runs, named by their folders, or by their paths if the names are not unique.

    Raises: FileNotFoundError or ValueError, naming the file, if a folder is not that of a run.
    """
    names = [folder.resolve().name for folder in folders]
    return [
        Run(
            folder, name if names.count(name) == 1 else str(folder), read_metrics(folder), read_lines(folder),
            read_flags(folder),
        )
        for folder, name in zip(folders, names, strict=True)
    ]  # fmt: skip


def ranks_of(folder: Path, direction: str) -> list[int]:
    """Return all ranks, from 1, of a direction in `ranks.csv`. Raises ValueError, naming the file, if it has none."""
    ranks = list(read_ranks(folder, direction).values())
    if not ranks:
        raise ValueError(f"{folder / RANKS_FILE} has no {direction} queries")
    return ranks


def bins(highest_rank: int) -> list[tuple[int, int]]:
    """Return first and last rank of every bin of a histogram of all ranks.

    >>> bins(30)
    [(1, 1), (2, 5), (6, 10), (11, 50)]
    """
    ends = [end for end, before in zip(BIN_ENDS, (0, *BIN_ENDS), strict=False) if before < highest_rank]
    if highest_rank > BIN_ENDS[-1]:
        ends.append(highest_rank)
    return [(before + 1, end) for before, end in zip((0, *ends), ends, strict=False)]


def histogram(ranks: list[int], bins: list[tuple[int, int]]) -> list[float]:
    """Return the percentage of the ranks (from 1) in each bin.

    >>> histogram([1, 1, 4, 30], [(1, 1), (2, 5), (6, 10), (11, 50)])
    [50.0, 25.0, 0.0, 25.0]
    """
    counts = [sum(first <= rank <= last for rank in ranks) for first, last in bins]
    return [100.0 * count / len(ranks) for count in counts]


@dataclass(frozen=True)
class Miss:
    """A text whose true video does not rank first: its rank, from 1, the preferred video, and scores.

    `scores` are those of the first five videos, by name; the true one may not be among them.
    """

    text: str
    true_video: str
    rank: int
    preferred: str
    scores: dict[str, float]


def worst_queries(folder: Path, count: int) -> list[Miss]:
    """Return the `count` texts of `ranks.csv` with the highest ranks, highest first.

    Raises: ValueError, naming the file, if it is damaged.
    """
    path = folder / RANKS_FILE
    misses = []
    with path.open(encoding="utf-8", newline="") as file:
        try:
            for row in csv.DictReader(file):
                if row["direction"] != TEXT_TO_VIDEO or int(row["rank"]) == 1:
                    continue
                top = [(row[f"top{place}"], row[f"score{place}"]) for place in range(1, TOP_COUNT + 1)]
                scores = {video: float(score) for video, score in top if video}
                preferred, *_ = scores
                misses.append(Miss(row["query"], row["true_video"], int(row["rank"]), preferred, scores))
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise ValueError(f"{path} is not what an evaluation writes: {type(error).__name__}: {error}") from error
    return sorted(misses, key=lambda miss: -miss.rank)[:count]


class Frames:
    """Frames of a run's videos; each video is read once."""

    def __init__(self, folder: Path):
        self.path = folder / GALLERY_FILE
        self._places: dict[str, list[str]] | None = None
        self._known: dict[str, list[bytes] | str] = {}

    def of(self, video: str) -> list[bytes] | str:
        """Return up to four evenly spread frames of a video of `gallery.csv` as JPEG, or the reason for none."""
        if video not in self._known:
            try:
                self._known[video] = self._read(video)
            except (VideoReadError, OSError, ValueError, csv.Error) as error:
                self._known[video] = str(error)
        return self._known[video]

    def _read(self, video: str) -> list[bytes]:
        if self._places is None:
            with self.path.open(encoding="utf-8", newline="") as file:
                self._places = {video: place for video, *place in list(csv.reader(file))[1:]}
        if video not in self._places:
            raise ValueError(f"{self.path} does not list {video}")
        path, *span = self._places[video]
        start, end = (float(seconds) if seconds else None for seconds in span)
        rule = read_frame_sampling(self.path.parent) or "published"
        frames = RawVideoExtractor(FRAMERATE, FRAME_SIZE, rule).read_frames(
            path, FRAMES_SHOWN, slice_framepos=2, start_time=start, end_time=end
        )
        return [encode_jpeg(frame, quality=JPEG_QUALITY, optimize=True) for frame in frames]
