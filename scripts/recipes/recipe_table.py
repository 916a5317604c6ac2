"""The table that opens and ends a recipe: published figures and, given a `--log`, those of the run beside them.

    python scripts/recipes/recipe_table.py --published "WTI + seqTransf" "DRL's README" 46.6/73.4/83.5/2/13.0 "" \
        --log log.txt
"""

import argparse
import re
import sys
from pathlib import Path

from scripts.result_lines import last_results, last_run

MEASURES = ("R@1", "R@5", "R@10", "MdR", "MnR")
UNKNOWN = "-"
PICKED = re.compile(r"The (?:best|picked) model is: .*")


def cells_of(figures: str) -> list[str]:
    """The five cells of "46.6/73.4/83.5/2/13.0"; an empty text is five unknown ones. ValueError for another form."""
    cells = figures.split("/") if figures else [UNKNOWN] * len(MEASURES)
    if len(cells) != len(MEASURES):
        raise ValueError(f"figures are {'/'.join(MEASURES)}, not {figures!r}")
    return cells


def table(published: list[list[str]], log: Path | None = None) -> str:
    """Markdown: a row for each (row, source, text-to-video, video-to-text), then that of the log's last evaluation."""
    rows = [["", "row", "text-to-video R@1", *MEASURES[1:], "video-to-text R@1", *MEASURES[1:], "source"]]
    for name, source, *figures in published:
        if not any(figures):
            source = f"see {source}"
        rows.append(["published", name, *(cell for direction in figures for cell in cells_of(direction)), source])
    if log is not None:
        text_to_video, video_to_text = last_results(log)
        rows.append(["this run", "last evaluation", *text_to_video, *video_to_text, str(log)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    if any(UNKNOWN in row for row in rows):
        lines.append(f"{UNKNOWN}: no figure is noted here; see the source.")
    if log is not None and (picked := PICKED.findall(last_run(log))):
        lines.append(f"this run: {picked[-1]}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--published", nargs=4, action="append", required=True,
        metavar=("ROW", "SOURCE", "TEXT_TO_VIDEO", "VIDEO_TO_TEXT"), help="figures as R@1/R@5/R@10/MdR/MnR or empty",
    )  # fmt: skip
    parser.add_argument("--log", type=Path, help="log.txt of the run, which has ended")
    args = parser.parse_args(argv)
    try:
        print(table(args.published, args.log))
    except (OSError, ValueError) as error:
        sys.exit(f"recipe_table: {error}")
    if args.log is None:
        print("These figures were published by others; those of this run follow when it has ended.", flush=True)


if __name__ == "__main__":
    main()
