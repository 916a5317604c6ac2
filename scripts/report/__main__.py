"""Write a report of runs to one HTML file: `python -m scripts.report RUN... [--output report.html] [--gallery N]`

Each RUN is an `--output_dir`. The page has the final numbers with their intervals, the curves of trainings, histograms
of ranks, and the worst queries with frames of the true and of the preferred video. It needs no other file and no
network.
"""

import argparse
import sys
from pathlib import Path

from modules.standard_streams import open_standard_streams, printable
from modules.whole_files import write_text
from scripts.report.data import read_runs
from scripts.report.page import page


def count(text: str) -> int:
    """Return a non-negative integer, for argparse."""
    if int(text) < 0:
        raise ValueError(text)
    return int(text)


def main(argv: list[str] | None = None) -> None:
    open_standard_streams()
    parser = argparse.ArgumentParser("report", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="output folders of runs")
    parser.add_argument("--output", type=Path, help="HTML file, by default report.html in the first RUN")
    parser.add_argument("--gallery", type=count, default=12, help="number of worst queries per run, 0 for none")
    args = parser.parse_args(argv)
    output = args.output or args.runs[0] / "report.html"
    try:
        write_text(output, page(read_runs(args.runs), args.gallery))
    except (OSError, ValueError) as error:
        sys.exit(printable(f"report: {error}"))
    print(output)


if __name__ == "__main__":
    main()
