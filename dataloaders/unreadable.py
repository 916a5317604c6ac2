"""Videos that give no frames, and what becomes of them: `--bad_videos fail` or `skip`.

A worker never raises for such a video: it reports it beside the batch, and the process that reads the batches decides.
The error then carries the path and the reason, no worker dies, and every rank can be told.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dataloaders.rawvideo_util import VideoReadError

UNREADABLE_VIDEO_POLICIES = ("fail", "skip")
MAX_UNREADABLE_SHARE = 0.01
"""Above this share of a split's videos a run stops, whatever the policy: its numbers would be those of other data."""


class TooManyUnreadableVideosError(RuntimeError):
    """More videos of a split are unreadable than a run may skip."""


@dataclass(frozen=True, order=True)
class UnreadableVideo:
    """An item of `RetrievalDataset.video_ids` (its number) that gave no frames: its file, and why."""

    item: int
    path: str
    reason: str


class UnreadableVideos:
    """The unreadable videos of one pass over a split, as far as this process knows.

    Args:
        split: its name, for messages.
        policy: "fail" raises at the first unreadable video, "skip" raises above `MAX_UNREADABLE_SHARE` of the files.
        files: number of video files in the split.
    """

    def __init__(self, split: str, policy: str, files: int):
        self.split, self.policy, self.files = split, policy, files
        self.by_item: dict[int, UnreadableVideo] = {}
        self.samples = 0

    def report(self, found: Iterable[UnreadableVideo]) -> None:
        """Takes note of samples of this process that met an unreadable video.

        Raises VideoReadError under "fail", TooManyUnreadableVideosError above the share that may be skipped.
        """
        for video in found:
            if self.policy == "fail":
                raise VideoReadError(video.path, video.reason)
            self.by_item.setdefault(video.item, video)
            self.samples += 1
        self._check_share()

    def state(self) -> dict:
        """What `restore` needs, as plain values."""
        rows = [(video.item, video.path, video.reason) for video in self.by_item.values()]
        return {"bad_videos": rows, "samples": self.samples}

    def restore(self, state: dict) -> None:
        """Go on from what a pass had found when it was interrupted."""
        self.by_item = {item: UnreadableVideo(item, path, reason) for item, path, reason in state["bad_videos"]}
        self.samples = state["samples"]

    def merge(self, ranks: list["UnreadableVideos"]) -> None:
        """Takes over what all ranks found, this one included, so that all of them know and decide the same."""
        found = sorted(video for other in ranks for video in other.by_item.values())
        self.by_item = {video.item: video for video in reversed(found)}
        self.samples = sum(other.samples for other in ranks)
        self._check_share()

    def paths(self) -> dict[str, str]:
        """Each unreadable file once, with the reason, in the order of the items."""
        return {video.path: video.reason for video in sorted(self.by_item.values())}

    def listing(self) -> str:
        """Each unreadable file with its reason, for a log line."""
        return "; ".join(f"{path} ({reason})" for path, reason in self.paths().items())

    def _check_share(self) -> None:
        count = len(self.paths())
        if count > MAX_UNREADABLE_SHARE * self.files:
            raise TooManyUnreadableVideosError(
                f"{count} of {self.files} video files of the {self.split} split cannot be read, more than the "
                f"{MAX_UNREADABLE_SHARE:.0%} that --bad_videos skip passes over: {self.listing()}; "
                "python -m scripts.check_data lists all of them"
            )


def write_reasons(path: Path, rows: Iterable[tuple[str | Path, str]]) -> None:
    """Write a csv with the columns path and reason; file names that are not UTF-8 keep their bytes."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows([("path", "reason"), *rows])
