"""Unreadable videos, which have no frames, and the two policies for them: `--bad_videos fail` or `skip`.

A worker reports such a video beside the batch instead of raising, and the process that reads the batches decides: the
error then has the path and the reason, no worker dies, and all ranks can decide alike.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from dataloaders.rawvideo_util import VideoReadError

DAMAGED_VIDEOS_SHOWN = 5
UNREADABLE_VIDEO_POLICIES = ("fail", "skip")
MAX_UNREADABLE_SHARE = 0.01
"""Share of a split's video files above which a run stops: its numbers would be those of another data set."""


def most_unreadable(files: int) -> int:
    """Return how many of a split's files may be skipped: the share, but one of any split with others."""
    return max(int(MAX_UNREADABLE_SHARE * files), min(1, files - 1))


class TooManyUnreadableVideosError(RuntimeError):
    """More videos of a split are unreadable than a run may skip."""


@dataclass(frozen=True, order=True)
class UnreadableVideo:
    """An item without frames: its number in `RetrievalDataset.video_ids`, its file, and the reason."""

    item: int
    path: str
    reason: str


@dataclass(frozen=True, order=True)
class DamagedVideo:
    """An item that was read without some of its frames: its number, its file, and the reason, which is what is lost."""

    item: int
    path: str
    reason: str


class UnreadableVideos:
    """The unreadable and the damaged videos of one pass over a split that this process has met.

    Args:
        split: name of the split, for messages.
        policy: "fail" raises at the first unreadable video, "skip" raises above `MAX_UNREADABLE_SHARE` of the files.
        files: number of video files in the split.
    """

    def __init__(self, split: str, policy: str, files: int):
        self.split, self.policy, self.files = split, policy, files
        self.by_item: dict[int, UnreadableVideo] = {}
        self.damaged: dict[int, DamagedVideo] = {}
        self.samples = 0

    def report(self, found: Iterable[UnreadableVideo | DamagedVideo]) -> None:
        """Record the unreadable or damaged video of each sample of this process that met one.

        Raises:
            VideoReadError: the policy is "fail".
            TooManyUnreadableVideosError: more files than may be skipped are unreadable.
        """
        for video in found:
            if isinstance(video, DamagedVideo):
                self.damaged.setdefault(video.item, video)
                continue
            if self.policy == "fail":
                raise VideoReadError(video.path, video.reason)
            self.by_item.setdefault(video.item, video)
            self.samples += 1
        self._check_share()

    def state(self) -> dict:
        """Return the state for `restore`, in plain values."""
        rows = [(video.item, video.path, video.reason) for video in self.by_item.values()]
        damaged = [(video.item, video.path, video.reason) for video in self.damaged.values()]
        return {"bad_videos": rows, "samples": self.samples, "damaged_videos": damaged}

    def restore(self, state: dict) -> None:
        """Continue from the state of an interrupted pass."""
        self.by_item = {item: UnreadableVideo(item, path, reason) for item, path, reason in state["bad_videos"]}
        self.damaged = {row[0]: DamagedVideo(*row) for row in state.get("damaged_videos", [])}
        self.samples = state["samples"]

    def merge(self, ranks: list["UnreadableVideos"]) -> None:
        """Replace the record by that of all ranks, this one included, so that all decide alike."""
        found = sorted(video for other in ranks for video in other.by_item.values())
        self.by_item = {video.item: video for video in reversed(found)}
        damaged = sorted(video for other in ranks for video in other.damaged.values())
        self.damaged = {video.item: video for video in reversed(damaged)}
        self.samples = sum(other.samples for other in ranks)
        self._check_share()

    def paths(self) -> dict[str, str]:
        """Return each unreadable file once with its reason, in the order of the items."""
        return {video.path: video.reason for video in sorted(self.by_item.values())}

    def listing(self) -> str:
        """Return each unreadable file with its reason, for a log line."""
        return "; ".join(f"{path} ({reason})" for path, reason in self.paths().items())

    def damage_listing(self) -> str:
        """Return the number of damaged files, and the first of them with what is lost, for a log line."""
        notes = {video.path: video.reason for video in sorted(self.damaged.values())}
        shown = "; ".join(f"{path} ({note})" for path, note in islice(notes.items(), DAMAGED_VIDEOS_SHOWN))
        return f"{len(notes)} of {self.files} video files are damaged, and used without what is lost: {shown}" + (
            "; ..." if len(notes) > DAMAGED_VIDEOS_SHOWN else ""
        )

    def _check_share(self) -> None:
        count = len(self.paths())
        if count > most_unreadable(self.files):
            raise TooManyUnreadableVideosError(
                f"{count} of {self.files} video files of the {self.split} split cannot be read, more than the "
                f"{MAX_UNREADABLE_SHARE:.0%} that --bad_videos skip passes over: {self.listing()}; "
                "python -m scripts.check_data lists all of them"
            )


def write_reasons(path: Path, rows: Iterable[tuple[str | Path, str]]) -> None:
    """Write a csv with the columns path and reason; file names that are not UTF-8 keep their bytes."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows([("path", "reason"), *rows])


def read_reasons(path: Path) -> dict[str, str]:
    """Return the reasons by path of a csv of `write_reasons`; an empty dict if it is missing."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return {row["path"]: row["reason"] for row in csv.DictReader(file)}
