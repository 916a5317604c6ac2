"""The table that ends the quickstart: `python -m scripts.miniature.quickstart_table RUN...`

Each RUN is the `--output_dir` of a training; `RUN-eval` beside it is that of a separate evaluation of its last
checkpoint, which must repeat the numbers of the last epoch exactly. Otherwise the command fails.
"""

import argparse
import re
import sys
from datetime import datetime
from pathlib import Path

from engine.run_files import DIRECTIONS, METRICS_FILE, read_metrics

TIME_STAMP = "%m/%d/%Y %H:%M:%S"
MEASURES = ("R1", "R5", "R10", "MdR", "MnR")  # keys of metrics.json


def seconds_taken(log: Path) -> float:
    """Return the seconds between the first and the last time stamp of a log.txt."""
    lines = log.read_text(encoding="utf-8").splitlines()
    stamps = [line.split(" - ")[0] for line in lines if re.match(r"\d\d/\d\d/\d{4} ", line)]
    if not stamps:
        raise ValueError(f"{log} has no line with a time stamp")
    first, last = (datetime.strptime(stamp, TIME_STAMP) for stamp in (stamps[0], stamps[-1]))
    return (last - first).total_seconds()


def table(runs: list[Path]) -> str:
    """Return a Markdown row for each run.

    Raises:
        OSError or ValueError: a result file is missing or damaged, or an evaluation differs from its training.
    """
    lines = [
        "| head | text-to-video R@1 | R@5 | R@10 | MdR | MnR | video-to-text R@1 | R@5 | R@10 | MdR | MnR "
        "| train, s | eval, s |",
        "|---" * 13 + "|",
    ]
    for run in runs:
        evaluation = run.with_name(run.name + "-eval")
        trained, evaluated = read_metrics(run), read_metrics(evaluation)
        for direction in DIRECTIONS.values():
            if evaluated[direction] != trained[direction]:
                raise ValueError(
                    f"{evaluation / METRICS_FILE}: {direction} is {evaluated[direction]}; the last epoch of "
                    f"{run / METRICS_FILE} has {trained[direction]}"
                )
        numbers = [f"{trained[direction][name]:.1f}" for direction in DIRECTIONS.values() for name in MEASURES]
        seconds = [f"{seconds_taken(folder / 'log.txt'):.0f}" for folder in (run, evaluation)]
        lines.append("| " + " | ".join([run.name, *numbers, *seconds]) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="output folders of training runs")
    runs = parser.parse_args(argv).runs
    try:
        print(table(runs))
    except (OSError, ValueError) as error:
        sys.exit(f"quickstart_table: {error}")
    print("The separate evaluations repeat the numbers of the last training epoch exactly.")


if __name__ == "__main__":
    main()
