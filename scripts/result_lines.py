"""The numbers of an evaluation, read from the lines that a run leaves in its log.txt."""

import re
from pathlib import Path

NUMBER = r"([\d.]+)"
RESULT = re.compile(
    rf">>>  (?:V2T\$)?R@1: {NUMBER} - (?:V2T\$)?R@5: {NUMBER} - (?:V2T\$)?R@10: {NUMBER} - "
    rf"(?:V2T\$)?Median R: {NUMBER} - (?:V2T\$)?Mean R: {NUMBER}"
)
RUN_START = " Effective parameters:\n"


def last_run(log: Path) -> str:
    """What the last run has written to a log.txt, to which every run of a folder appends; all of it without a start."""
    return log.read_text(encoding="utf-8").rpartition(RUN_START)[2]


def last_results(log: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """R@1, R@5, R@10, median and mean rank of the last evaluation of the last run: text-to-video, video-to-text.

    Raises ValueError naming the log where that run holds no evaluation.
    """
    found = RESULT.findall(last_run(log))
    if len(found) < 2:
        raise ValueError(f"{log} holds no result of an evaluation")
    return found[-2], found[-1]
