"""Compare the results of several runs: `python -m scripts.compare_runs RUN...`

Each RUN is an `--output_dir`; its `metrics.json` holds the run's last evaluation, which after a training without
`--holdout` is that of the last epoch. Runs that differ only in the seed get a row with mean and standard deviation; an
evaluation alone has the seed of its own `--seed`, so give it that of its checkpoint. Two runs are also compared query
by query: the p-value of their difference in R@1.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from engine.run_files import DIRECTIONS, NUMBERS, read_metrics, read_ranks
from metrics import BOOTSTRAP_RESAMPLES
from modules.standard_streams import open_standard_streams, printable

QUERIES_SHOWN = 3


def table(runs: list[Path], results: list[dict], key: str) -> str:
    """Return the Markdown table of one direction: a row per run, then one per group of seeds.

    Args:
        runs: the folders, named in the first column.
        results: their `metrics.json`.
        key: "text_to_video" or "video_to_text".
    """
    lines = [
        "| run | split | epoch | seed | R@1 [95 %] | R@5 | R@10 | R@50 | MdR | MnR |",
        "|---" * 10 + "|",
    ]
    for run, result in zip(runs, results, strict=True):
        low, high = result[key]["intervals_95"]["R1"]
        values = [f"{result[key][name]:.1f}" for name in NUMBERS]
        values[0] += f" [{low:.1f}, {high:.1f}]"
        lines.append(row([str(run), result["split"], epoch_of(result), str(result["seed"]), *values]))
    for (_, split), seeds in groups_of_seeds(runs, results, key):
        numbers = seeds[list(NUMBERS)]
        cells = [f"{mean:.1f} ± {deviation:.1f}" for mean, deviation in zip(numbers.mean(), numbers.std(), strict=True)]
        name = f"mean ± sd of {len(seeds)} seeds: {', '.join(seeds['run'])}"
        lines.append(row([name, split, "", ", ".join(map(str, seeds["seed"])), *cells]))
    return "\n".join(lines)


def epoch_of(result: dict) -> str:
    """Return the epoch of the numbers and how it was selected: "epoch 4 (last; test split picks epoch 3)"."""
    epoch, picked_on = result["epoch"], result["protocol"]["epoch_picked_on"]
    if epoch is None:
        return "-"
    if picked_on is None:
        return f"epoch {epoch}"
    if epoch == result["best"]["epoch"]:
        return f"epoch {epoch}, picked on {picked_on}"
    return f"epoch {epoch} (last; {picked_on} split picks epoch {result['best']['epoch']})"


def row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def groups_of_seeds(runs: list[Path], results: list[dict], key: str) -> list[tuple[tuple, pd.DataFrame]]:
    """Return ((configuration, split), runs) of every configuration with at least two seeds, one run per seed."""
    same = ["configuration_sha256_without_seed", "split"]
    frame = pd.DataFrame([{name: result[name] for name in (*same, "seed")} | result[key] for result in results])
    frame.insert(0, "run", [run.name for run in runs])
    groups = frame.drop_duplicates([*same, "seed"]).groupby(same, sort=False)
    return [(configuration, group) for configuration, group in groups if len(group) > 1]


def paired_difference(first: dict, second: dict) -> tuple[float, float]:
    """Return R@1 of `second` minus that of `first`, in points, and the two-sided p-value of a paired bootstrap.

    Queries are resampled. The p-value is twice the smaller share of resamples whose difference is not above, or not
    below, 0 (Efron and Tibshirani 1993, chapter 15: the level of the percentile interval that ends at 0); the observed
    sample counts as one more resample. A resample's difference depends only on the numbers of queries that one of the
    runs alone has at rank 1, and these follow a multinomial distribution.

    Args:
        first, second: ranks from 1 by query, of the same queries.

    Raises:
        ValueError: the queries are not the same, or there are none.
    """
    if first.keys() != second.keys():
        lacking = [*sorted(first.keys() - second.keys()), *sorted(second.keys() - first.keys())]
        shown = ", ".join(f"{query!r} of {video}" for query, video, _ in lacking[:QUERIES_SHOWN])
        raise ValueError(
            f"a paired comparison needs the same queries: {len(first)} and {len(second)}, of which {len(lacking)} are "
            f"in one run only, such as {shown}"
        )
    if not first:
        raise ValueError("a paired comparison needs queries; the runs have none of this direction")
    changes = np.array([int(second[query] == 1) - int(first[query] == 1) for query in first])
    shares = [np.mean(changes == change) for change in (1, -1, 0)]
    gained, lost, _ = np.random.default_rng(0).multinomial(len(changes), shares, size=BOOTSTRAP_RESAMPLES).T
    not_above, not_below = np.count_nonzero(gained <= lost), np.count_nonzero(gained >= lost)
    p_value = 2 * (1 + min(not_above, not_below)) / (1 + BOOTSTRAP_RESAMPLES)
    return 100.0 * float(changes.mean()), min(1.0, p_value)


def main(argv: list[str] | None = None) -> None:
    open_standard_streams()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="output folders of runs; two are compared query by query")
    runs = parser.parse_args(argv).runs
    try:
        results = [read_metrics(run) for run in runs]
        for direction, key in DIRECTIONS.items():
            print(f"{direction}\n\n{table(runs, results, key)}\n")
        if len(runs) == 2:
            for direction in DIRECTIONS:
                difference, p_value = paired_difference(*(read_ranks(run, direction) for run in runs))
                print(
                    f"{direction}: R@1 of {runs[1]} less that of {runs[0]}: {difference:+.1f} points, "
                    f"p = {p_value:.4f} (paired bootstrap over queries)"
                )
    except (OSError, ValueError) as error:
        sys.exit(printable(f"compare_runs: {error}"))


if __name__ == "__main__":
    main()
