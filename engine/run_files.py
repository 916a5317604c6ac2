"""`metrics.json`, `ranks.csv` and `gallery.csv`: what every evaluation leaves in `--output_dir`, written and read.

All are replaced by the next evaluation of the run; the list `history` in `metrics.json` keeps the numbers of all.
`flags.json` has the flags of the run that was last started.
"""

import csv
import io
import json
import math
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import numpy as np

import metrics
from engine.provenance import provenance
from modules import post_processing
from modules.checkpoint import FLAGS_FILE
from modules.whole_files import text_sha256, write_text

METRICS_FILE = "metrics.json"
RANKS_FILE = "ranks.csv"
HOLDOUT_FILE = "holdout.txt"
UNREADABLE_VIDEOS_FILE = "bad_videos.csv"
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
        """Rank each row's true column of (N, gallery); ValueError for NaN, naming the rows."""
        true_column = np.asarray(true_column)
        ranks = metrics.ranks(similarity, true_column, direction)
        top = metrics.top_columns(similarity, true_column, TOP_COUNT)
        scores = np.take_along_axis(np.asarray(similarity), top, axis=1)
        return cls(direction, queries, [gallery[column] for column in true_column], gallery, ranks, top, scores)

    def summary(self) -> dict:
        """Recalls in percent with their 95 % intervals, median and mean rank from 1, numbers of queries and items."""
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
        """Rows of `ranks.csv`; a gallery of fewer than five leaves the last cells empty."""
        unused = [""] * (2 * (TOP_COUNT - self.top_columns.shape[1]))
        for query, true_video, rank, columns, scores in zip(
            self.queries, self.true_videos, self.ranks.tolist(), self.top_columns.tolist(), self.top_scores.tolist(),
            strict=True,
        ):  # fmt: skip
            top = [
                cell for column, score in zip(columns, scores, strict=True) for cell in (self.gallery[column], score)
            ]
            yield [self.direction, query, true_video, rank + 1, *top, *unused]


class RunRecord:
    """What all evaluations of a run have in common, their history, and the files; for the main process.

    Args:
        args: the flags, `precision` resolved.
        processes: their number R, which decides the gradients of a training.
        holdout: the `Annotations` of the held-out videos (`--holdout`), or None; `holdout.txt` lists them.
    """

    def __init__(self, args, processes: int = 1, holdout=None):
        self.folder = Path(args.output_dir)
        self.picked_on = None
        if args.do_train:
            self.picked_on = "test" if holdout is None else "holdout"
        self.history: list[dict] = []
        self.common = {
            **provenance(args, processes),
            "holdout": None,
        }
        self.listing = None
        if holdout is not None:
            video_ids = sorted({caption.video_id for caption in holdout.captions})
            self.listing = "".join(f"{video_id}\n" for video_id in video_ids)
            self.common["holdout"] = {"captions": len(holdout.captions), **about_listing(self.listing)}
        self.bad_videos: dict[tuple[str, str], list] = {}
        self.is_training = args.do_train
        if not (args.resume_model or args.resume):  # `resume` and `restore` have to check first
            self.begin()

    def begin(self) -> None:
        """A run that goes on from no other: what an earlier one left in the folder is not of this one."""
        (self.folder / UNREADABLE_VIDEOS_FILE).unlink(missing_ok=True)
        if self.is_training:
            (self.folder / HOLDOUT_FILE).unlink(missing_ok=True)
            self.list_holdout()

    def list_holdout(self) -> None:
        """Write the ids of the held-out videos, if any."""
        if self.listing is not None:
            write_text(self.folder / HOLDOUT_FILE, self.listing)

    def list_bad_videos(self, dataset, bad_videos, epoch: int | None) -> None:
        """Add to `bad_videos.csv` what a pass over a `RetrievalDataset` found that no earlier pass did."""
        known = len(self.bad_videos)
        for bad in sorted(bad_videos.by_item.values()):
            row = [bad_videos.split, dataset.video_ids[bad.item], bad.path, bad.reason, "" if epoch is None else epoch]
            self.bad_videos.setdefault((bad_videos.split, bad.path), row)
        if len(self.bad_videos) > known:
            self.write_bad_videos()

    def write_bad_videos(self) -> None:
        """Write `bad_videos.csv`, or remove it where there are none."""
        if self.bad_videos:
            rows = [["split", "video_id", "path", "reason", "epoch"], *self.bad_videos.values()]
            write_csv(self.folder / UNREADABLE_VIDEOS_FILE, rows)
        else:
            (self.folder / UNREADABLE_VIDEOS_FILE).unlink(missing_ok=True)

    def list_gallery(self, dataset) -> None:
        """Write `gallery.csv`: where the frames are of a `RetrievalDataset`'s items, which `ranks.csv` names alike."""
        rows = [[name, os.path.abspath(str(path)), *span] for name, path, *span in dataset.item_files()]
        write_csv(self.folder / GALLERY_FILE, [["video", "path", "start", "end"], *rows])

    def add(
        self, raw: list[Ranking], processed: list[Ranking], post_process: dict | None,
        split: str, epoch: int | None, checkpoint, seconds: float, bad_videos: int = 0,
    ) -> None:  # fmt: skip
        """Write down one evaluation: `raw` in `ranks.csv`, `processed` in `ranks_METHOD.csv`, all in `metrics.json`.

        `bad_videos` of the gallery could not be read and count as misses.
        """
        several = len(raw[0].queries) > len(set(raw[0].true_videos))
        entry = {"split": split, "epoch": epoch, "checkpoint": None if checkpoint is None else str(checkpoint)}
        entry["bad_videos"] = bad_videos
        entry |= summaries(raw)
        self.history.append(entry)
        protocol = {"captions_per_video": "several" if several else "one", "epoch_picked_on": self.picked_on}
        post_processed = None
        stale = set(post_processing.ASSUMPTIONS)  # what an earlier run left does not belong to these numbers
        if post_process is not None:
            post_processed = {**post_process, **summaries(processed)}
            write_ranks(self.folder / f"ranks_{post_process['method']}.csv", processed)
            stale.remove(post_process["method"])
        for method in stale:
            (self.folder / f"ranks_{method}.csv").unlink(missing_ok=True)
        picked = None
        if self.picked_on is not None:
            best = self.best()
            picked = {"epoch": best["epoch"], "checkpoint": best["checkpoint"], "R1": best["text_to_video"]["R1"]}
        write_ranks(self.folder / RANKS_FILE, raw)
        content = {
            **entry, "post_processed": post_processed, "protocol": protocol, "best": picked, **self.common,
            "seconds": round(seconds, 3), "history": self.history,
        }  # fmt: skip
        write_text(
            self.folder / METRICS_FILE, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        )

    def best(self) -> dict:
        """The entry of the history with the highest text-to-video R@1 on the split that picks the epoch; the later of
        equal ones."""
        picking = [entry for entry in self.history if entry["split"] == self.picked_on]
        return max(picking, key=lambda entry: (entry["text_to_video"]["R1"], entry["epoch"]))

    def state(self) -> dict:
        """What `restore` needs, as plain values: the evaluations so far, and the bad videos."""
        return {"history": self.history, "bad_videos": list(self.bad_videos.values()), "listing": self.listing}

    def restore(self, state: dict) -> None:
        """Go on from a run that was interrupted; ValueError where it held out other videos."""
        if state["listing"] != self.listing:
            raise ValueError("the interrupted run held out other videos: its training split has changed")
        # the folder may have been moved meanwhile, with the checkpoints of the run in it
        self.history = [
            {**entry, "checkpoint": entry["checkpoint"] and str(self.folder / Path(entry["checkpoint"]).name)}
            for entry in state["history"]
        ]
        self.bad_videos = {(row[0], row[2]): row for row in state["bad_videos"]}
        self.write_bad_videos()

    def resume(self, resume_model: str | Path, first_epoch: int) -> None:
        """Take over the epochs before `first_epoch` from the run that is resumed, where it left its `metrics.json`.

        Raises ValueError where that run held out other videos: it has trained on those of this one. One that ended
        before its first evaluation has `holdout.txt` alone; CLIP4Clip's have neither and are taken as they are.
        """
        folder = Path(resume_model).parent
        ours = theirs = self.common["holdout"]
        history = []
        if (folder / METRICS_FILE).is_file():
            earlier = read_metrics(folder)
            theirs, history = earlier["holdout"], earlier["history"]
        elif (folder / HOLDOUT_FILE).is_file():
            theirs = about_listing((folder / HOLDOUT_FILE).read_text(encoding="utf-8"))
            ours = None if self.listing is None else about_listing(self.listing)
        if theirs != ours:
            raise ValueError(
                f"--resume_model {resume_model}: its run held out {theirs}, this one {ours}; give the same --holdout, "
                "--seed and training split"
            )
        self.history = [
            entry
            for entry in history
            if entry["split"] == self.picked_on and entry["epoch"] is not None and entry["epoch"] < first_epoch
        ]
        self.list_holdout()
        self.bad_videos = read_bad_videos(folder)


def about_listing(listing: str) -> dict:
    """Number and sha256 of the video ids, one per line."""
    return {"videos": listing.count("\n"), "sha256": text_sha256(listing)}


def summaries(rankings: list[Ranking]) -> dict[str, dict]:
    """Summaries under "text_to_video" and "video_to_text"."""
    return {DIRECTIONS[ranking.direction]: ranking.summary() for ranking in rankings}


def write_flags(args) -> None:
    """Write `flags.json`: the flags in force, but for those that nothing reads and this process's number."""
    flags = {name: value for name, value in vars(args).items() if name not in ("unread_flags", "local_rank")}
    write_text(Path(args.output_dir) / FLAGS_FILE, json.dumps(flags, sort_keys=True, indent=1) + "\n")


def write_ranks(path: Path, rankings: list[Ranking]) -> None:
    """One row per query of both directions, ranks from 1."""
    top = [f"{kind}{place}" for place in range(1, TOP_COUNT + 1) for kind in ("top", "score")]
    header = ["direction", "query", "true_video", "rank", *top]
    write_csv(path, [header, *(row for ranking in rankings for row in ranking.rows())])


def write_csv(path: Path, rows: Iterable[list]) -> None:
    """Write the rows, the first of which is the header."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    write_text(path, text.getvalue())


def read_bad_videos(folder: Path) -> dict[tuple[str, str], list]:
    """Rows of a run's `bad_videos.csv` by split and path; none where it has no such file."""
    if not (folder / UNREADABLE_VIDEOS_FILE).is_file():
        return {}
    with (folder / UNREADABLE_VIDEOS_FILE).open(encoding="utf-8", newline="") as file:
        return {(row[0], row[2]): row for row in list(csv.reader(file))[1:]}


def read_metrics(folder: str | Path) -> dict:
    """`metrics.json` of a run; FileNotFoundError or ValueError naming the file."""
    path = Path(folder) / METRICS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {METRICS_FILE}; is it the --output_dir of an evaluation?")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        check_content(content)
        return content
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} is not what an evaluation writes: {type(error).__name__}: {error}") from error


def check_content(content: dict) -> None:
    """Raises KeyError, TypeError or ValueError where something is not there that a reader of `metrics.json` needs."""
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
    """Ranks (from 1) of one direction in `ranks.csv`, by query, true video, and a count of equal ones before.

    FileNotFoundError or ValueError naming the file.
    """
    path = Path(folder) / RANKS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {RANKS_FILE}; is it the --output_dir of an evaluation?")
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
