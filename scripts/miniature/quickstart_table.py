"""The table that ends the quickstart: `python -m scripts.miniature.quickstart_table RUN...`

Each RUN is an `--output_dir` of training; `RUN-eval` beside it is that of the eval-only run of its last checkpoint,
which must have repeated the last numbers of the training. Exits with an error where it has not.
"""

import argparse
import re
import sys
from datetime import datetime
from pathlib import Path

from scripts.result_lines import last_results

TIME_STAMP = "%m/%d/%Y %H:%M:%S"


def seconds_taken(log: Path) -> float:
    """Seconds between the first and the last line of a log.txt."""
    lines = log.read_text(encoding="utf-8").splitlines()
    stamps = [line.split(" - ")[0] for line in lines if re.match(r"\d\d/\d\d/\d{4} ", line)]
    first, last = (datetime.strptime(stamp, TIME_STAMP) for stamp in (stamps[0], stamps[-1]))
    return (last - first).total_seconds()


def table(runs: list[Path]) -> str:
    """The rows of all runs in Markdown; ValueError where an eval-only run gave other numbers than the training."""
    lines = [
        "| head | text-to-video R@1 | R@5 | R@10 | MdR | MnR | video-to-text R@1 | R@5 | R@10 | MdR | MnR "
        "| train, s | eval, s |",
        "|---" * 13 + "|",
    ]
    for run in runs:
        training, evaluation = run / "log.txt", run.with_name(run.name + "-eval") / "log.txt"
        results = last_results(training)
        if last_results(evaluation) != results:
            raise ValueError(
                f"{evaluation} gives {last_results(evaluation)}, the last epoch in {training} gave {results}"
            )
        cells = [
            run.name,
            *results[0],
            *results[1],
            f"{seconds_taken(training):.0f}",
            f"{seconds_taken(evaluation):.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="output folders of training runs")
    runs = parser.parse_args(argv).runs
    try:
        print(table(runs))
    except (OSError, ValueError) as error:
        sys.exit(f"quickstart_table: {error}")
    print("The eval-only runs repeat the last epoch's numbers of the training exactly.")


if __name__ == "__main__":
    main()
