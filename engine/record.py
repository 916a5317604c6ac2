"""The results of a run so far: the history of its evaluations, the best epoch, and the files that show them.

Each evaluation replaces `metrics.json`, `ranks.csv` and `gallery.csv`; the list `history` in `metrics.json` keeps the
numbers of all of them.
"""

import json
import os
from pathlib import Path

from engine.evaluation import Evaluation
from engine.provenance import provenance
from engine.run_files import (
    DAMAGED_VIDEOS_FILE,
    DIRECTIONS,
    GALLERY_FILE,
    HOLDOUT_FILE,
    METRICS_FILE,
    RANKS_FILE,
    Ranking,
    describe_listing,
    read_metrics,
    read_unreadable_videos,
    write_csv,
    write_ranks,
    write_unreadable_videos,
)
from modules import post_processing
from modules.whole_files import write_text


class RunRecord:
    """The evaluations of a run; for the main process.

    Args:
        folder: the run's `--output_dir`.
        source: the entries that name the run in `metrics.json` (`provenance`).
        picked_on: the split that picks the epoch of a training, None for an evaluation alone.
        holdout: the `Annotations` of the held-out videos (`--holdout`), or None.

    Attributes:
        history: the entries of all evaluations.
        changes: the flags and the data that differ from those of the run that was resumed, with epoch and step.
    """

    def __init__(self, folder: str | Path, source: dict, picked_on: str | None = None, holdout=None):
        self.folder, self.source, self.picked_on = Path(folder), source, picked_on
        self.history: list[dict] = []
        self.changes: list[dict] = []
        self.unreadable: dict[tuple[str, str], list] = {}
        self.damaged: dict[tuple[str, str], list] = {}
        self.listing = self.holdout = None
        if holdout is not None:
            video_ids = sorted({caption.video_id for caption in holdout.captions})
            self.listing = "".join(f"{video_id}\n" for video_id in video_ids)
            self.holdout = {"captions": len(holdout.captions), **describe_listing(self.listing)}

    @classmethod
    def from_flags(cls, args, processes: int = 1, holdout=None) -> "RunRecord":
        """Return the record of a run with these flags, of which `precision` is resolved."""
        validation_split = "test" if holdout is None else "holdout"
        picked_on = validation_split if args.do_train else None
        return cls(args.output_dir, provenance(args, processes), picked_on, holdout)

    def begin(self) -> None:
        """Start a run that continues no other: remove the lists that an earlier one left in the folder."""
        self._write_video_lists()
        if self.picked_on is not None:
            (self.folder / HOLDOUT_FILE).unlink(missing_ok=True)
            self._list_holdout()

    def _list_holdout(self) -> None:
        if self.listing is not None:
            write_text(self.folder / HOLDOUT_FILE, self.listing)

    def list_unreadable(self, dataset, unreadable, epoch: int | None) -> None:
        """Add to `bad_videos.csv` the videos that a pass over a `RetrievalDataset` is the first to find unreadable.

        Damaged videos, which were used, are added to `damaged_videos.csv`.
        """
        known = len(self.unreadable) + len(self.damaged)
        for rows, videos in (self.unreadable, unreadable.by_item), (self.damaged, unreadable.damaged):
            for video in sorted(videos.values()):
                video_id, epoch_cell = dataset.video_ids[video.item], "" if epoch is None else epoch
                row = [unreadable.split, video_id, video.path, video.reason, epoch_cell]
                rows.setdefault((unreadable.split, video.path), row)
        if len(self.unreadable) + len(self.damaged) > known:
            self._write_video_lists()

    def _write_video_lists(self) -> None:
        write_unreadable_videos(self.folder, self.unreadable)
        write_unreadable_videos(self.folder, self.damaged, DAMAGED_VIDEOS_FILE)

    def list_gallery(self, dataset) -> None:
        """Write `gallery.csv`: the file and time span of each item of a `RetrievalDataset`, by its name in ranks."""
        rows = [[name, os.path.abspath(str(path)), *span] for name, path, *span in dataset.item_files()]
        write_csv(self.folder / GALLERY_FILE, [["video", "path", "start", "end"], *rows])

    def add(self, evaluation: Evaluation, epoch: int | None, checkpoint, data_sha256: str | None = None) -> None:
        """Write an evaluation of a checkpoint to `metrics.json`, `ranks.csv` and `ranks_METHOD.csv`.

        `data_sha256` is that of the evaluated split (`SplitContent`).

        Unreadable videos of the gallery count as misses.
        """
        text_to_video = evaluation.rankings[0]
        several = len(text_to_video.queries) > len(set(text_to_video.true_videos))
        entry = {
            "split": evaluation.split, "epoch": epoch, "checkpoint": None if checkpoint is None else str(checkpoint),
            "bad_videos": len(evaluation.unreadable.by_item), **summaries(evaluation.rankings),
        }  # fmt: skip
        if data_sha256 is not None:
            entry["data_sha256"] = data_sha256
        self.history.append(entry)
        post_processed, method = None, None
        if evaluation.post_process is not None:
            method = evaluation.post_process["method"]
            post_processed = {**evaluation.post_process, **summaries(evaluation.processed)}
            write_ranks(self.folder / f"ranks_{method}.csv", evaluation.processed)
        for other in set(post_processing.ASSUMPTIONS) - {method}:  # an earlier run's do not belong to these numbers
            (self.folder / f"ranks_{other}.csv").unlink(missing_ok=True)
        write_ranks(self.folder / RANKS_FILE, evaluation.rankings)
        content = {
            **entry, "post_processed": post_processed,
            "protocol": {"captions_per_video": "several" if several else "one", "epoch_picked_on": self.picked_on},
            "best": self._picked(), **self.source, "holdout": self.holdout, "seconds": round(evaluation.seconds, 3),
            "history": self.history,
        }  # fmt: skip
        if self.changes:
            content["changed_when_resumed"] = self.changes
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        write_text(self.folder / METRICS_FILE, text)

    def best(self) -> dict:
        """Return the entry with the highest text-to-video R@1 on the split that picks the epoch; the latest of ties.

        Epochs that were evaluated on another state of the split than the last one are left out.
        """
        evaluated = [entry for entry in self.history if entry["split"] == self.picked_on]
        candidates = [entry for entry in evaluated if is_comparable(entry, evaluated[-1])]
        return max(candidates, key=lambda entry: (entry["text_to_video"]["R1"], entry["epoch"]))

    def validation_name(self) -> str:
        """Return the name of the split that picks the epoch, for log lines."""
        if self.holdout is None:
            return "the test split, the published protocol"
        return f"the holdout of {self.holdout['videos']} training videos"

    def _picked(self) -> dict | None:
        if self.picked_on is None:
            return None
        best = self.best()
        return {"epoch": best["epoch"], "checkpoint": best["checkpoint"], "R1": best["text_to_video"]["R1"]}

    def state(self) -> dict:
        """Return the plain values that `restore` needs: the evaluations so far, unreadable and damaged videos."""
        return {
            "history": self.history, "bad_videos": list(self.unreadable.values()),
            "damaged_videos": list(self.damaged.values()), "listing": self.listing, "changes": self.changes,
        }  # fmt: skip

    def restore(self, state: dict) -> None:
        """Continue an interrupted run.

        Raises:
            ValueError: that run held out other videos.
        """
        if state["listing"] != self.listing:
            raise ValueError("the interrupted run held out other videos: its training split has changed")
        # the folder may have been moved meanwhile, with the checkpoints of the run in it
        self.history = [
            {**entry, "checkpoint": entry["checkpoint"] and str(self.folder / Path(entry["checkpoint"]).name)}
            for entry in state["history"]
        ]
        self.changes = list(state.get("changes", []))
        self.unreadable = {(row[0], row[2]): row for row in state["bad_videos"]}
        self.damaged = {(row[0], row[2]): row for row in state.get("damaged_videos", [])}
        self._write_video_lists()

    def continue_from(self, resume_model: str | Path, first_epoch: int) -> None:
        """Take over the epochs before `first_epoch` from the run of `--resume_model`, if it left its `metrics.json`.

        A run that ended before its first evaluation has `holdout.txt` alone; CLIP4Clip's have neither and are accepted.

        Raises:
            ValueError: that run held out other videos, so that it has trained on some of this run's.
        """
        folder = Path(resume_model).parent
        ours = theirs = self.holdout
        history = []
        if (folder / METRICS_FILE).is_file():
            earlier = read_metrics(folder)
            theirs, history = earlier["holdout"], earlier["history"]
        elif (folder / HOLDOUT_FILE).is_file():
            theirs = describe_listing((folder / HOLDOUT_FILE).read_text(encoding="utf-8"))
            ours = None if self.listing is None else describe_listing(self.listing)
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
        self._list_holdout()
        self.unreadable = read_unreadable_videos(folder)
        self.damaged = read_unreadable_videos(folder, DAMAGED_VIDEOS_FILE)


def is_comparable(entry: dict, other: dict) -> bool:
    """Return True if two entries of the history are of the same state of a split; older ones have its sizes alone."""
    if "data_sha256" in entry and "data_sha256" in other:
        return entry["data_sha256"] == other["data_sha256"]
    names = [(key, name) for key in DIRECTIONS.values() for name in ("queries", "gallery")]
    return all(entry[key][name] == other[key][name] for key, name in names)


def summaries(rankings: list[Ranking]) -> dict[str, dict]:
    """Return the summaries under "text_to_video" and "video_to_text"."""
    return {DIRECTIONS[ranking.direction]: ranking.summary() for ranking in rankings}
