"""The files of results in `--output_dir`, written and read: `metrics.json`, `ranks.csv`, `flags.json` and others."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import numpy as np

import metrics
from modules.checkpoint import FLAGS_FILE
from modules.whole_files import text_sha256, write_text

METRICS_FILE = "metrics.json"
RANKS_FILE = "ranks.csv"
HOLDOUT_FILE = "holdout.txt"
UNREADABLE_VIDEOS_FILE = "bad_videos.csv"
DAMAGED_VIDEOS_FILE = "damaged_videos.csv"
GALLERY_FILE = "gallery.csv"

DIRECTIONS = {metrics.TEXT_TO_VIDEO: "text_to_video", metrics.VIDEO_TO_TEXT: "video_to_text"}  # keys of metrics.json
NUMBERS = (*(f"R{depth}" for depth in metrics.RECALL_DEPTHS), "MdR", "MnR")
TOP_COUNT = 5


@dataclass
class Ranking:
    """The queries of one direction, their 0-based ranks (N,), and the top columns (N, <= 5) with their scores."""

    direction: str
    queries: list[str]
    true_videos: list[str]
    gallery: list[str]
    ranks: np.ndarray
    top_columns: np.ndarray
    top_scores: np.ndarray

    @classmethod
    def of(cls, direction: str, similarity, true_column, queries: list[str], gallery: list[str]) -> "Ranking":
        """Rank each row's true column in a similarity (N, gallery).

        Raises:
            ValueError: a similarity is NaN; the message names the rows.
        """
        true_column = np.asarray(true_column)
        ranks = metrics.ranks(similarity, true_column, direction)
        top = metrics.top_columns(similarity, true_column, TOP_COUNT)
        scores = np.take_along_axis(np.asarray(similarity), top, axis=1)
        return cls(direction, queries, [gallery[column] for column in true_column], gallery, ranks, top, scores)

    def summary(self) -> dict:
        """Return recalls in percent with 95 % intervals, median and mean rank from 1, numbers of queries and items."""
        numbers = metrics.summarize(self.ranks)
        return {
            **{f"R{depth}": numbers[f"R{depth}"] for depth in metrics.RECALL_DEPTHS},
            "MdR": numbers["MedianR"],
            "MnR": numbers["MeanR"],
            "intervals_95": metrics.recall_intervals(self.ranks),
            "queries": len(self.ranks),
            "gallery": len(self.gallery),
        }

    def rows(self) -> Iterable[list]:
        """Yield the rows of `ranks.csv`; a gallery of fewer than five leaves the last cells empty."""
        padding = [""] * (2 * (TOP_COUNT - self.top_columns.shape[1]))
        for query, true_video, rank, columns, scores in zip(
            self.queries, self.true_videos, self.ranks.tolist(), self.top_columns.tolist(), self.top_scores.tolist(),
            strict=True,
        ):  # fmt: skip
            top = [
                cell for column, score in zip(columns, scores, strict=True) for cell in (self.gallery[column], score)
            ]
            yield [self.direction, query, true_video, rank + 1, *top, *padding]


def describe_listing(listing: str) -> dict:
    """Return number and sha256 of the video ids in a text with one per line."""
    return {"videos": listing.count("\n"), "sha256": text_sha256(listing)}


def write_flags(folder: str | Path, args) -> None:
    """Write `flags.json`: the flags in force, but for the unread ones and this process's number."""
    flags = {name: value for name, value in vars(args).items() if name not in ("unread_flags", "local_rank")}
    write_text(Path(folder) / FLAGS_FILE, json.dumps(flags, sort_keys=True, indent=1) + "\n")


def write_ranks(path: Path, rankings: list[Ranking]) -> None:
    """Write one row per query of every direction, with ranks from 1."""
    top = [f"{kind}{place}" for place in range(1, TOP_COUNT + 1) for kind in ("top", "score")]
    header = ["direction", "query", "true_video", "rank", *top]
    write_csv(path, [header, *(row for ranking in rankings for row in ranking.rows())])


def write_csv(path: Path, rows: Iterable[list]) -> None:
    """Write the rows, of which the first is the header."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    write_text(path, text.getvalue())


def write_unreadable_videos(
    folder: Path, rows: dict[tuple[str, str], list], name: str = UNREADABLE_VIDEOS_FILE
) -> None:
    """Write `bad_videos.csv`, or the file `name`, with the rows by split and path; remove it if there are no rows."""
    if rows:
        header = ["split", "video_id", "path", "reason", "epoch"]
        write_csv(folder / name, [header, *rows.values()])
    else:
        (folder / name).unlink(missing_ok=True)


def read_unreadable_videos(folder: Path, name: str = UNREADABLE_VIDEOS_FILE) -> dict[tuple[str, str], list]:
    """Return the rows of `bad_videos.csv`, or of the file `name`, by split and path; an empty dict without the file."""
    if not (folder / name).is_file():
        return {}
    with (folder / name).open(encoding="utf-8", newline="") as file:
        return {(row[0], row[2]): row for row in list(csv.reader(file))[1:]}


def existing_file(folder: str | Path, name: str) -> Path:
    """Return the path of a file that every evaluation leaves; FileNotFoundError if it is missing."""
    path = Path(folder) / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; is {folder} the --output_dir of an evaluation?")
    return path


def read_metrics(folder: str | Path) -> dict:
    """Read a run's `metrics.json`.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is not valid; the message names it.
    """
    path = existing_file(folder, METRICS_FILE)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        check_content(content)
        return content
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} is not what an evaluation writes: {type(error).__name__}: {error}") from error


def check_content(content: dict) -> None:
    """Raise KeyError, TypeError or ValueError if an entry that readers of `metrics.json` need is missing or invalid."""
    for key in DIRECTIONS.values():
        low, high = content[key]["intervals_95"]["R1"]
        if not all(map(math.isfinite, (low, high, *(content[key][name] for name in NUMBERS)))):
            raise ValueError(f"{key} holds a number that is not finite")
    itemgetter("split", "epoch", "seed", "configuration_sha256_without_seed", "holdout")(content)
    if content["protocol"]["epoch_picked_on"] is not None:
        itemgetter("epoch")(content["best"])
    for entry in content["history"]:
        itemgetter("split", "epoch")(entry)


def read_ranks(folder: str | Path, direction: str) -> dict[tuple[str, str, int], int]:
    """Return the ranks (from 1) of one direction in `ranks.csv`, by query, true video and number of equal rows above.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is not valid; the message names it.
    """
    path = existing_file(folder, RANKS_FILE)
    ranks: dict[tuple[str, str, int], int] = {}
    equal_rows: Counter[tuple[str, str]] = Counter()
    with path.open(encoding="utf-8", newline="") as file:
        try:
            for row in csv.DictReader(file):
                if row["direction"] != direction:
                    continue
                pair = row["query"], row["true_video"]
                ranks[(*pair, equal_rows[pair])] = int(row["rank"])
                equal_rows[pair] += 1
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise ValueError(f"{path} is not what an evaluation writes: {type(error).__name__}: {error}") from error
    return ranks
