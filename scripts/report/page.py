"""Render the HTML page of a report from report.html.j2: one file without scripts and without anything to load.

Captions, names and paths come from other people's files: jinja2 escapes every text, and the page's policy lets a
browser load and run nothing.
"""

import base64
import re
from pathlib import Path
from typing import Any

import jinja2

from engine.run_files import DIRECTIONS
from metrics import TEXT_TO_VIDEO
from scripts.compare_runs import epoch_of
from scripts.report.data import Frames, Miss, Run, bins, histogram, ranks_of, worst_queries
from scripts.report.plots import colour, curves_plot, histogram_plot

TEMPLATE = "report.html.j2"
RECALLS = ("R1", "R5", "R10")
STEP_PANELS = {
    "loss": "Loss (bold: mean of each epoch)",
    "learning_rates": "Learning rate (thin: the lowest, where there are several)",
    "gradient_norm": "Gradient norm, before it is clipped",
    "clips_per_second": "Clips per second, of all processes",
}


def page(runs: list[Run], gallery_size: int) -> str:
    """Return the report of the runs, with the `gallery_size` worst queries of each."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template(TEMPLATE).render(
        title=f"Retrieval report: {', '.join(run.name for run in runs)}",
        runs=[run_facts(number, run) for number, run in enumerate(runs)],
        results=[
            {"caption": direction.capitalize(), "rows": result_rows(runs, key)} for direction, key in DIRECTIONS.items()
        ],
        assumptions=assumptions(runs),
        flags=flags_table(runs),
        missing_curves=missing_curves(runs),
        step_plots=step_plots(runs),
        recall_plots=[recall_plots(runs, direction, key) for direction, key in DIRECTIONS.items()],
        rank_plots=[rank_plot(runs, direction) for direction in DIRECTIONS],
        galleries=[gallery(number, run, gallery_size) for number, run in enumerate(runs)] if gallery_size else [],
    )


def run_facts(number: int, run: Run) -> dict[str, Any]:
    """Return a row of the table of runs."""
    about = run.metrics
    queries = about[DIRECTIONS[TEXT_TO_VIDEO]]
    facts = [
        about["seed"], queries.get("queries"), queries.get("gallery"), shortened(about.get("code_version")),
        shortened(about.get("configuration_sha256")),
    ]  # fmt: skip
    checkpoint = about.get("checkpoint") or "none"
    return {"name": run.name, "colour": colour(number), "facts": facts, "checkpoint": checkpoint}


def shortened(text: str | None) -> str:
    """Return the text with every hash cut to its first 12 digits.

    >>> shortened("git 00713eade0ae3e90ceba76f4132eb1449a2e8ade dirty")
    'git 00713eade0ae dirty'
    """
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28,}\b", r"\1", str(text))


def result_rows(runs: list[Run], key: str) -> list[dict[str, Any]]:
    """Return rows of one direction's results: the scores of each run, then its post-processed scores if it has any."""
    rows = []
    for number, run in enumerate(runs):
        processed = run.metrics.get("post_processed") or {}
        for suffix, summary in (("", run.metrics[key]), (f" + {processed.get('method')}", processed.get(key))):
            if summary is None:
                continue
            rows.append({
                "name": run.name + suffix,
                "colour": colour(number),
                "about": f"{run.metrics['split']} split, {epoch_of(run.metrics)}",
                "recalls": [
                    {"value": summary[name], "interval": summary["intervals_95"].get(name)} for name in RECALLS
                ],
                "ranks": [summary["MdR"], summary["MnR"]],
            })  # fmt: skip
    return rows


def assumptions(runs: list[Run]) -> list[str]:
    """Return what the runs' post-processing assumes of an evaluation, a sentence for each method."""
    processed = [run.metrics.get("post_processed") for run in runs]
    return sorted({f"{one['method']} assumes: {one['assumes']}" for one in processed if one})


def flags_table(runs: list[Run]) -> dict[str, Any] | None:
    """Return all flags, those that differ between runs first; None if no run has a flags.json."""
    known = [run for run in runs if run.flags]
    if not known:
        return None

    def differs(flag: str) -> bool:
        return len({repr(run.flags.get(flag)) for run in known}) > 1

    names = sorted({flag for run in known for flag in run.flags}, key=lambda flag: (not differs(flag), flag))
    rows = [
        {"name": name, "differs": differs(name), "values_of_runs": [str(run.flags.get(name, "")) for run in known]}
        for name in names
    ]
    return {"header": ["flag", *(run.name for run in known)], "rows": rows}


def missing_curves(runs: list[Run]) -> list[str]:
    """Return a sentence for every run without curves of its training."""
    sentences = []
    for run in runs:
        if not run.is_training:
            sentences.append(f"{run.name} is an evaluation alone and has no curves.")
        elif not run.step_curves("loss"):
            sentences.append(
                f"{run.name} has logged no step in metrics.jsonl, and has curves of its evaluations alone."
            )
    return sentences


def step_plots(runs: list[Run]) -> list[dict[str, Any]]:
    """Return plots of the values that trainings log over optimizer steps."""
    plots = []
    for key, caption in STEP_PANELS.items():
        curves = [run.step_curves(key) for run in runs]
        if any(curves):
            means = [run.epoch_losses() for run in runs] if key == "loss" else None
            plots.append({"caption": caption, "svg": curves_plot(key, curves, "optimizer step", means)})
    return plots


def recall_plots(runs: list[Run], direction: str, key: str) -> list[dict[str, Any]]:
    """Return plots of one direction's recalls over epochs."""
    plots = []
    for name in RECALLS:
        recalls = [[run.recalls(key, name)] for run in runs]
        if any(epochs for [(epochs, _)] in recalls):
            caption = f"R@{name[1:]}, {direction}, %"
            plots.append({"caption": caption, "svg": curves_plot(f"{key} {name}", recalls, "epoch, from 0")})
    return plots


def rank_plot(runs: list[Run], direction: str) -> dict[str, Any]:
    """Return the histogram of one direction's ranks."""
    ranks = [ranks_of(run.folder, direction) for run in runs]
    all_bins = bins(max(map(max, ranks)))
    shares = [histogram(of_run, all_bins) for of_run in ranks]
    return {"caption": direction.capitalize(), "svg": histogram_plot(f"ranks {direction}", all_bins, shares)}


def gallery(number: int, run: Run, size: int) -> dict[str, Any]:
    """Return the worst text-to-video queries of a run with frames of the true and of the preferred video."""
    frames = Frames(run.folder)
    misses = [
        {"rank": miss.rank, "text": miss.text, "true": true_video(miss, frames), "preferred": preferred(miss, frames)}
        for miss in worst_queries(run.folder, size)
    ]
    return {"name": run.name, "colour": colour(number), "misses": misses}


def true_video(miss: Miss, frames: Frames) -> dict[str, Any]:
    if miss.true_video in miss.scores:
        score = f"score {miss.scores[miss.true_video]:.3f}"
    else:  # ranks.csv has the first five alone
        score = f"score at most {min(miss.scores.values()):.3f}"
    return video(f"true: {miss.true_video}, {score}", frames.of(miss.true_video))


def preferred(miss: Miss, frames: Frames) -> dict[str, Any]:
    score = miss.scores[miss.preferred]
    return video(f"preferred: {miss.preferred}, score {score:.3f}", frames.of(miss.preferred))


def video(caption: str, frames: list[bytes] | str) -> dict[str, Any]:
    """Return a figure of a video: its frames as base64, or the reason for none."""
    if isinstance(frames, str):
        return {"caption": caption, "reason": frames, "frames": []}
    return {"caption": caption, "reason": None, "frames": [base64.b64encode(frame).decode() for frame in frames]}
