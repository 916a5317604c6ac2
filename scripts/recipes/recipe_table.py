"""The table that opens and ends a recipe: published figures and, given `--run`, those of the run beside them.

    python scripts/recipes/recipe_table.py --published "WTI + seqTransf" "DRL's README" 46.6/73.4/83.5/2/13.0 "" \
        --run ckpts/drl_msrvtt_wti_seqTransf
"""

import argparse
import sys
from pathlib import Path

from engine.run_files import DIRECTIONS, METRICS_FILE, read_metrics

MEASURES = {"R1": "R@1", "R5": "R@5", "R10": "R@10", "MdR": "MdR", "MnR": "MnR"}  # keys of metrics.json: headings
UNKNOWN = "-"


def cells_of(figures: str) -> list[str]:
    """Return the five cells of "46.6/73.4/83.5/2/13.0"; an empty text gives five unknown ones.

    Raises:
        ValueError: there are not five figures.
    """
    cells = figures.split("/") if figures else [UNKNOWN] * len(MEASURES)
    if len(cells) != len(MEASURES):
        raise ValueError(f"figures are {'/'.join(MEASURES.values())}, not {figures!r}")
    return cells


def table(published: list[list[str]], run: Path | None = None) -> str:
    """Return Markdown: a row for each (name, source, text-to-video, video-to-text), then the run's last evaluation.

    Raises:
        OSError or ValueError: a figure or the run's metrics.json is missing or damaged.
    """
    names = list(MEASURES.values())
    rows = [["", "row", f"text-to-video {names[0]}", *names[1:], f"video-to-text {names[0]}", *names[1:], "source"]]
    for name, source, *figures in published:
        if not any(figures):
            source = f"see {source}"
        rows.append(["published", name, *(cell for direction in figures for cell in cells_of(direction)), source])
    best = None
    if run is not None:
        results = read_metrics(run)
        best = results["best"]
        numbers = [f"{results[direction][name]:.1f}" for direction in DIRECTIONS.values() for name in MEASURES]
        rows.append(["this run", "last evaluation", *numbers, str(run / METRICS_FILE)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    if any(UNKNOWN in row for row in rows):
        lines.append(f"{UNKNOWN}: no figure is noted here; see the source.")
    if best is not None:
        lines.append(
            f"this run: best epoch {best['epoch']}, text-to-video R@1 {best['R1']:.1f} on the "
            f"{results['protocol']['epoch_picked_on']} split, which picked it: {best['checkpoint']}"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--published", nargs=4, action="append", required=True,
        metavar=("ROW", "SOURCE", "TEXT_TO_VIDEO", "VIDEO_TO_TEXT"), help="figures as R@1/R@5/R@10/MdR/MnR or empty",
    )  # fmt: skip
    parser.add_argument("--run", type=Path, help="--output_dir of the run, which has ended")
    args = parser.parse_args(argv)
    try:
        print(table(args.published, args.run))
    except (OSError, ValueError) as error:
        sys.exit(f"recipe_table: {error}")
    if args.run is None:
        print("These figures were published by others; those of this run follow when it has ended.", flush=True)


if __name__ == "__main__":
    main()
