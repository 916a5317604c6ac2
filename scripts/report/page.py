"""The HTML page of a report: one file without scripts and without anything to load.

Captions, names and paths come from other people's files: every text goes through `html.escape`, and the page's policy
lets a browser load and run nothing.
"""

import base64
import re
from collections.abc import Iterable
from html import escape

from engine.run_files import DIRECTIONS
from metrics import TEXT_TO_VIDEO
from scripts.compare_runs import epoch_of
from scripts.report.data import Frames, Miss, Run, bins, histogram, ranks_of, worst_queries
from scripts.report.plots import colour, curves_plot, histogram_plot

RECALLS = ("R1", "R5", "R10")
STEP_PANELS = {
    "loss": "Loss (bold: mean of each epoch)",
    "learning_rates": "Learning rate (thin: the lowest, where there are several)",
    "gradient_norm": "Gradient norm, before it is clipped",
    "clips_per_second": "Clips per second, of all processes",
}

STYLE = """
:root { color-scheme: light dark; --back: #fff; --ink: #1c2230; --soft: #667085; --line: #e2e6ee; --card: #f7f8fb; }
@media (prefers-color-scheme: dark) {
  :root { --back: #12151c; --ink: #e6e9f0; --soft: #98a2b3; --line: #2a303c; --card: #1a1f29; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem clamp(1rem, 4vw, 3rem) 4rem; max-width: 1240px; background: var(--back);
  color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; margin: 0.5rem 0 0.25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 0.75rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.25rem 0 0.5rem; overflow-wrap: anywhere; }
p { margin: 0.4rem 0; } .soft, small { color: var(--soft); } small { display: block; font-size: 0.78rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 0.45rem 0.9rem 0.45rem 0; }
thead, tr { border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); font-size: 0.82rem; white-space: nowrap; }
td { white-space: nowrap; } td.name { font-weight: 600; white-space: normal; min-width: 7.5rem; }
.name small { font-weight: 400; }
td.long { white-space: normal; overflow-wrap: anywhere; min-width: 16rem; }
.dot { display: inline-block; width: 0.7em; height: 0.7em; border-radius: 50%; margin-right: 0.45em; }
.legend { display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; }
.plots { display: grid; gap: 1rem; margin-top: 1rem; }
.of-2 { grid-template-columns: repeat(auto-fill, minmax(min(450px, 100%), 1fr)); }
.of-3 { grid-template-columns: repeat(auto-fill, minmax(min(330px, 100%), 1fr)); }
figure { margin: 0; } .plots figure { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 0.7rem 0.7rem 0.3rem; } .plots figcaption { font-weight: 600; font-size: 0.88rem; margin-bottom: 0.3rem; }
svg { width: 100%; height: auto; display: block; stroke-linejoin: round; }
svg text { font-family: inherit !important; fill: currentColor; }
.misses { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(440px, 100%), 1fr)); gap: 1rem; }
.miss { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 0.9rem; }
.miss p { overflow-wrap: anywhere; } .miss figure { margin-top: 0.7rem; }
.miss figcaption { font-size: 0.82rem; color: var(--soft); overflow-wrap: anywhere; }
.rank { float: right; margin-left: 0.75rem; padding: 0 0.6em; border-radius: 1em; border: 1px solid var(--line);
  font-size: 0.82rem; font-variant-numeric: tabular-nums; }
.frames { display: grid; grid-template-columns: repeat(4, minmax(0, 96px)); gap: 4px; }
.frames img { width: 100%; height: auto; display: block; border-radius: 5px; }
.none { border: 1px dashed var(--line); border-radius: 5px; padding: 0.5rem; font-size: 0.82rem; }
details { margin-top: 1rem; } summary { cursor: pointer; font-weight: 600; } tr.differs td { font-weight: 600; }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(runs: list[Run], gallery_size: int) -> str:
    """The report of the runs, with `gallery_size` worst queries of each."""
    title = f"Retrieval report: {', '.join(run.name for run in runs)}"
    sections = [results_section(runs), curves_section(runs), ranks_section(runs)]
    if gallery_size:
        sections.append(gallery_section(runs, gallery_size))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def table(header: Iterable[str], rows: Iterable[str]) -> str:
    """A table that scrolls sideways on a narrow screen; `rows` are HTML, `header` are texts."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def name_cell(number: int, name: str, about: str = "") -> str:
    """The cell that begins a run's row, with its colour, and a line about it below the name."""
    return f'<td class="name">{dot(number)}{escape(name)}<small>{escape(about)}</small></td>'


def dot(number: int) -> str:
    return f'<span class="dot" style="background:{colour(number)}"></span>'


def legend(runs: list[Run]) -> str:
    names = "".join(f"<span>{dot(number)}{escape(run.name)}</span>" for number, run in enumerate(runs))
    return f'<p class="legend">{names}</p>'


def results_section(runs: list[Run]) -> str:
    """Final numbers of both directions, and what the runs are."""
    parts = ["<h2>Results</h2>", '<p class="soft">Recalls in percent, with 95 % bootstrap intervals over queries.</p>']
    for direction, key in DIRECTIONS.items():
        parts.append(f"<h3>{escape(direction.capitalize())}</h3>")
        rows = [row for number, run in enumerate(runs) for row in result_rows(number, run, key)]
        parts.append(table(["run", "R@1", "R@5", "R@10", "median rank", "mean rank"], rows))
    assumptions = {
        f"{processed['method']} assumes: {processed['assumes']}"
        for processed in (run.metrics.get("post_processed") for run in runs)
        if processed
    }
    parts += [f'<p class="soft">{escape(text)}</p>' for text in sorted(assumptions)]
    facts = ["run", "seed", "queries", "gallery", "code version", "configuration", "checkpoint"]
    parts += ["<h3>Runs</h3>", table(facts, [facts_row(number, run) for number, run in enumerate(runs)])]
    return "\n".join([*parts, flags_table(runs)])


def result_rows(number: int, run: Run, key: str) -> list[str]:
    """A row of the run's scores, and one of the post-processed scores where it has such."""
    processed = run.metrics.get("post_processed") or {}
    rows = []
    for more, summary in (("", run.metrics[key]), (f" + {processed.get('method')}", processed.get(key))):
        if summary is None:
            continue
        cells = [name_cell(number, run.name + more, f"{run.metrics['split']} split, {epoch_of(run.metrics)}")]
        for name in RECALLS:
            interval = summary["intervals_95"].get(name)
            shown = "" if interval is None else f"<small>{interval[0]:.1f} to {interval[1]:.1f}</small>"
            cells.append(f"<td>{summary[name]:.1f}{shown}</td>")
        cells += [f"<td>{summary[name]:.1f}</td>" for name in ("MdR", "MnR")]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return rows


def facts_row(number: int, run: Run) -> str:
    about = run.metrics
    first = about[DIRECTIONS[TEXT_TO_VIDEO]]
    facts = [
        about["seed"], first.get("queries"), first.get("gallery"), shortened(about.get("code_version")),
        shortened(about.get("configuration_sha256")),
    ]  # fmt: skip
    cells = [name_cell(number, run.name), *(f"<td>{escape(str(fact))}</td>" for fact in facts)]
    cells.append(f'<td class="long">{escape(str(about.get("checkpoint") or "none"))}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def shortened(text: str | None) -> str:
    """The text with the beginning alone of every hash in it.

    >>> shortened("git 00713eade0ae3e90ceba76f4132eb1449a2e8ade dirty")
    'git 00713eade0ae dirty'
    """
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28,}\b", r"\1", str(text))


def flags_table(runs: list[Run]) -> str:
    """All flags, folded away; those that differ between runs come first."""
    known = [run for run in runs if run.flags]
    if not known:
        return '<p class="soft">No run has a flags.json.</p>'

    def differs(flag: str) -> bool:
        return len({repr(run.flags.get(flag)) for run in known}) > 1

    rows = []
    for flag in sorted({flag for run in known for flag in run.flags}, key=lambda flag: (not differs(flag), flag)):
        cells = "".join(f'<td class="long">{escape(str(run.flags.get(flag, "")))}</td>' for run in known)
        rows.append(f"<tr{' class=differs' * differs(flag)}><td>{escape(flag)}</td>{cells}</tr>")
    header = ["flag", *(run.name for run in known)]
    return f"<details><summary>Flags (bold: those that differ)</summary>{table(header, rows)}</details>"


def figure(caption: str, plot: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{plot}</figure>"


def grid(figures: list[str], columns: int) -> str:
    """Figures beside each other, as far as the screen is wide enough."""
    return f'<div class="plots of-{columns}">{"".join(figures)}</div>'


def curves_section(runs: list[Run]) -> str:
    """What the training logged over optimizer steps, and the recalls over epochs, of all runs that are trainings."""
    parts = ["<h2>Training</h2>", legend(runs)]
    for run in runs:
        if not run.is_training:
            reason = "is an evaluation alone and has no curves"
        elif not run.step_curves("loss"):
            reason = "has logged no step in metrics.jsonl, and has curves of its evaluations alone"
        else:
            continue
        parts.append(f'<p class="soft">{escape(run.name)} {reason}.</p>')
    plots = []
    for key, caption in STEP_PANELS.items():
        curves = [run.step_curves(key) for run in runs]
        if any(curves):
            means = [run.epoch_losses() for run in runs] if key == "loss" else None
            plots.append(figure(caption, curves_plot(key, curves, "optimizer step", means)))
    parts.append(grid(plots, 2))
    for direction, key in DIRECTIONS.items():
        plots = []
        for name in RECALLS:
            recalls = [[run.recalls(key, name)] for run in runs]
            if any(epochs for [(epochs, _)] in recalls):
                caption = f"R@{name[1:]}, {direction}, %"
                plots.append(figure(caption, curves_plot(f"{key} {name}", recalls, "epoch, from 0")))
        parts.append(grid(plots, 3))
    return "\n".join(parts)


def ranks_section(runs: list[Run]) -> str:
    """Histograms of the ranks of both directions."""
    plots = []
    for direction in DIRECTIONS:
        ranks = [ranks_of(run.folder, direction) for run in runs]
        all_bins = bins(max(map(max, ranks)))
        shares = [histogram(of_run, all_bins) for of_run in ranks]
        plots.append(figure(direction.capitalize(), histogram_plot(f"ranks {direction}", all_bins, shares)))
    return f"<h2>Ranks</h2>\n{legend(runs)}\n{grid(plots, 2)}"


def gallery_section(runs: list[Run], size: int) -> str:
    """The worst text-to-video queries of every run."""
    parts = [
        "<h2>Errors</h2>",
        '<p class="soft">The texts whose true video ranks lowest, with up to four evenly spread frames of it and '
        "of the video that the model prefers.</p>",
    ]
    for number, run in enumerate(runs):
        frames, misses = Frames(run.folder), worst_queries(run.folder, size)
        parts.append(f"<h3>{dot(number)}{escape(run.name)}</h3>")
        if not misses:
            parts.append("<p>Every text finds its video first.</p>")
        cards = "".join(miss_card(miss, frames) for miss in misses)
        parts.append(f'<div class="misses">{cards}</div>')
    return "\n".join(parts)


def miss_card(miss: Miss, frames: Frames) -> str:
    """A text, the rank of its video, and both videos."""
    if miss.true_video in miss.scores:
        score = f"score {miss.scores[miss.true_video]:.3f}"
    else:  # ranks.csv has the first five alone
        score = f"score at most {min(miss.scores.values()):.3f}"
    return (
        f'<article class="miss"><span class="rank">rank {miss.rank}</span><p>{escape(miss.text)}</p>'
        + video_figure(f"true: {miss.true_video}, {score}", frames.of(miss.true_video))
        + video_figure(
            f"preferred: {miss.preferred}, score {miss.scores[miss.preferred]:.3f}", frames.of(miss.preferred)
        )
        + "</article>"
    )


def video_figure(caption: str, pictures: list[bytes] | str) -> str:
    """Frames of a video, or why there are none."""
    if isinstance(pictures, str):
        shown = f'<div class="none">no frames: {escape(pictures)}</div>'
    else:
        images = "".join(
            f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(picture).decode()}">' for picture in pictures
        )
        shown = f'<div class="frames">{images}</div>'
    return f"<figure>{shown}<figcaption>{escape(caption)}</figcaption></figure>"
