"""Report the problems of a data set from the facts about its files: list, table, csv and histograms."""

import csv
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path

import numpy as np

from dataloaders.annotations import Annotations, Caption, first_names

MISSING = "missing"
UNREADABLE = "unreadable"
ENDS_EARLY = "ends early"
LOST_FRAMES = "lost frames"
SHORT = "shorter than 1 s"
SAME_CONTENT = "same content as another"
IN_TRAINING = "also in training"
REPEATED = "caption repeated"
CUT = "caption cut"
KINDS = (MISSING, UNREADABLE, ENDS_EARLY, SHORT, SAME_CONTENT, IN_TRAINING, REPEATED, CUT, LOST_FRAMES)
MOST_BINS = 60

Span = tuple[float | None, float | None]
"""`start` and `end` of captions."""


@dataclass(frozen=True)
class Split:
    """A split with the files that were found; `missing` are the ids without a file."""

    name: str
    annotations: Annotations
    missing: tuple[str, ...] = ()

    def captions_of_videos(self) -> dict[str, list[Caption]]:
        """Return the captions by video id, in order."""
        captions: dict[str, list[Caption]] = {}
        for caption in self.annotations.captions:
            captions.setdefault(caption.video_id, []).append(caption)
        return captions

    def spans_of_files(self) -> Iterator[tuple[Path, Span]]:
        """Yield the file and the time span of every caption whose video has a file."""
        for caption in self.annotations.captions:
            if caption.video_id in self.annotations.video_paths:
                yield self.annotations.video_paths[caption.video_id], (caption.start, caption.end)


@dataclass(frozen=True)
class FileFacts:
    """Facts about a file.

    Attributes:
        seconds: its length; 0 is unknown.
        failures: reasons by span, for spans without frames.
        early_end: where it ends and where it should; empty if it is complete or its length is unknown.
        lost_frames: how many frames are damaged, as text; empty if there are none.
    """

    seconds: float
    failures: dict[Span, str] = field(default_factory=dict)
    early_end: str = ""
    lost_frames: str = ""


@dataclass(frozen=True)
class Problem:
    """A row of `data_problems.csv`."""

    split: str
    video_id: str
    path: Path | str
    problem: str
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """All facts about a data set, and what follows from them.

    Attributes:
        splits: in the order of the table; no other split may overlap with "train".
        facts: facts by file.
        contents: a name by file, the same for identical files; other files may be absent.
        token_counts: number of tokens by text, start and end token included.
        max_words: greatest number of tokens of a text.
    """

    splits: list[Split]
    facts: Mapping[Path, FileFacts]
    contents: Mapping[Path, str]
    token_counts: Mapping[str, int]
    max_words: int

    def problems(self) -> list[Problem]:
        """Return all problems by split, then in the order of `KINDS`, then in the order of the split."""
        owners = self._owners_of_contents()
        training = {
            caption.video_id for split in self.splits if split.name == "train" for caption in split.annotations.captions
        }
        found = []
        for split in self.splits:
            of_videos = [*self._file_problems(split), *self._shared_problems(split, owners, training)]
            found += sorted([*of_videos, *self._caption_problems(split)], key=lambda row: KINDS.index(row.problem))
        return found

    def _owners_of_contents(self) -> dict[Path | str, dict[str, str]]:
        """Return, by content or by file if it is unique, the ids of its videos with the first split of each."""
        owners: dict[Path | str, dict[str, str]] = {}
        for split in self.splits:
            for video_id, path in split.annotations.video_paths.items():
                owners.setdefault(self.contents.get(path, path), {}).setdefault(video_id, split.name)
        return owners

    def _file_problems(self, split: Split) -> Iterator[Problem]:
        for video_id in split.missing:
            yield Problem(split.name, video_id, "", MISSING)
        for video_id, captions in split.captions_of_videos().items():
            path = split.annotations.video_paths.get(video_id)
            if path is None:
                continue
            facts = self.facts[path]
            spans = dict.fromkeys((caption.start, caption.end) for caption in captions)
            reasons = [facts.failures[span] for span in spans if span in facts.failures]
            if reasons:
                yield Problem(split.name, video_id, path, UNREADABLE, "; ".join(dict.fromkeys(reasons)))
            if facts.early_end:
                yield Problem(split.name, video_id, path, ENDS_EARLY, facts.early_end)
            if facts.lost_frames and not reasons:
                yield Problem(split.name, video_id, path, LOST_FRAMES, facts.lost_frames)
            if not reasons and 0 < facts.seconds < 1:
                yield Problem(split.name, video_id, path, SHORT, f"{facts.seconds:.2f} s")

    def _shared_problems(self, split: Split, owners: Mapping, training: set[str]) -> Iterator[Problem]:
        for video_id, path in split.annotations.video_paths.items():
            others = owners[self.contents.get(path, path)].items()
            names = [f"{other_split} {other}" for other, other_split in others if other != video_id]
            if names:
                yield Problem(split.name, video_id, path, SAME_CONTENT, ", ".join(names))
        if split.name != "train":
            for video_id in split.captions_of_videos():
                if video_id in training:
                    path = split.annotations.video_paths.get(video_id, "")
                    yield Problem(split.name, video_id, path, IN_TRAINING)

    def _caption_problems(self, split: Split) -> Iterator[Problem]:
        captions = split.annotations.captions
        videos: dict[str, Counter] = {}
        for caption in captions:
            videos.setdefault(caption.text, Counter())[caption.video_id] += 1
        for text, times in videos.items():
            if times.total() > 1:
                for video_id in times:
                    path = split.annotations.video_paths.get(video_id, "")
                    detail = f"{times.total()} times, of {len(times)} videos: {text}"
                    yield Problem(split.name, video_id, path, REPEATED, detail)
        for caption in captions:
            if self.token_counts[caption.text] > self.max_words:
                path = split.annotations.video_paths.get(caption.video_id, "")
                detail = f"{self.token_counts[caption.text]} tokens: {caption.text}"
                yield Problem(split.name, caption.video_id, path, CUT, detail)

    def table(self, problems: Iterable[Problem]) -> str:
        """Return a Markdown table with the number of videos, captions and problems of each kind by split."""
        counts = Counter((problem.split, problem.problem) for problem in problems)
        lines = [f"| split | videos | captions | {' | '.join(KINDS)} |", "|---" * (3 + len(KINDS)) + "|"]
        for split in self.splits:
            numbers = [len(split.captions_of_videos()), len(split.annotations.captions)]
            numbers += [counts[split.name, kind] for kind in KINDS]
            lines.append(f"| {split.name} | {' | '.join(map(str, numbers))} |")
        return "\n".join(lines)

    def draw(self, path: Path, seconds_used: float) -> None:
        """Write a PNG with histograms of caption and video lengths; lines mark the limits.

        `seconds_used` is the part of a video that the frames cover at the sampling rate.
        """
        from matplotlib.figure import Figure  # takes a second to import, and only this needs it

        lengths, seconds = {}, {}
        for split in self.splits:
            lengths[split.name] = [self.token_counts[caption.text] for caption in split.annotations.captions]
            files = set(split.annotations.video_paths.values())
            seconds[split.name] = [self.facts[file].seconds for file in files if self.facts[file].seconds > 0]
        figure = Figure(figsize=(11, 4), layout="constrained")
        captions, videos = figure.subplots(1, 2)
        draw_shares(captions, lengths, self.max_words + 1, f"cut by --max_words {self.max_words} from here")
        draw_shares(videos, seconds, seconds_used, f"--max_frames reach {seconds_used:g} s")
        captions.set(xlabel="tokens per caption, start and end included", ylabel="share of captions")
        videos.set(xlabel="seconds per video", ylabel="share of videos")
        figure.savefig(path, dpi=120)


def draw_shares(axes, values: Mapping[str, list[float]], mark: float, label: str) -> None:
    """Draw a histogram for every name, in common bins of whole numbers, and a line at `mark`."""
    numbers = np.concatenate(list(values.values()))
    if len(numbers):
        first, last = math.floor(numbers.min()), math.floor(numbers.max()) + 1
        width = math.ceil((last - first) / MOST_BINS)
        edges = np.arange(first, last + width, width)
        for name, found in values.items():
            shares = np.full(len(found), 1 / max(1, len(found)))
            axes.hist(found, edges, weights=shares, histtype="step", label=f"{name} ({len(found)})")
    axes.axvline(mark, color="grey", linestyle=":", label=label)
    axes.legend()


def write_problems(path: Path, problems: Iterable[Problem]) -> None:
    """Write a csv with the fields of `Problem` as columns; without problems it has the header only."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = csv.writer(file)
        rows.writerow([column.name for column in fields(Problem)])
        rows.writerows(astuple(problem) for problem in problems)


def evaluation_failure(problems: Iterable[Problem]) -> str:
    """Return why the test split cannot be evaluated; "" if it can."""
    unreadable = [
        problem for problem in problems if problem.split == "test" and problem.problem in (MISSING, UNREADABLE)
    ]
    if not unreadable:
        return ""
    names = first_names([problem.video_id for problem in unreadable])
    return f"{len(unreadable)} videos of the test split are missing or unreadable: {names}"
