"""Draw plots of a report as SVG elements of a page, in its font and text colour."""

import colorsys
import io
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from scripts.report.data import Curve

# medium lightness, visible on white and on black
COLOURS = ("#3b82f6", "#f97316", "#10a37f", "#d946ef", "#ca8a04", "#ef4444", "#06b6d4", "#8b5cf6")
GOLDEN_RATIO = 0.618  # as a step of hue, it keeps many colours far apart
INK = "#010203"  # stands for the page's text colour until the SVG is written
INCHES = (4.4, 2.7)
MOST_MARKED_POINTS = 25


def colour(run: int) -> str:
    """Return the colour of a run, `#rrggbb`, by its number."""
    if run < len(COLOURS):
        return COLOURS[run]
    return to_hex(colorsys.hls_to_rgb(run * GOLDEN_RATIO % 1, 0.55, 0.65))


def curves_plot(name: str, of_runs: list[list[Curve]], x_label: str, means: list[Curve] | None = None) -> str:
    """Return the SVG of the curves of every run, the first of each bold, or all thin below bold `means`.

    Args:
        name: unique in the page; the label for screen readers.
    """

    def draw(axes: Axes) -> None:
        for run, curves in enumerate(of_runs):
            for number, (places, values) in enumerate(curves):
                thin = means is not None or number > 0
                axes.plot(
                    places, values, color=colour(run), alpha=0.4 if thin else 1,
                    linewidth=0.8 if thin else 1.6, marker=marker(places), markersize=3,
                )  # fmt: skip
        for run, (places, values) in enumerate(means or []):
            axes.plot(places, values, color=colour(run), marker=marker(places), markersize=3)
        axes.set_xlabel(x_label)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))

    return svg(name, draw)


def marker(points: list) -> str | None:
    """Return a marker for curves of few points, because a single point is invisible without it."""
    return "o" if len(points) <= MOST_MARKED_POINTS else None


def histogram_plot(name: str, bins: list[tuple[int, int]], shares: list[list[float]]) -> str:
    """Return the SVG of the percentage of queries in each bin of ranks, a bar for every run."""

    def draw(axes: Axes) -> None:
        width = 0.8 / len(shares)
        for run, of_run in enumerate(shares):
            places = [bin_ - 0.4 + (run + 0.5) * width for bin_ in range(len(bins))]
            bars = axes.bar(places, of_run, 0.92 * width, color=colour(run))
            if len(shares) * len(bins) <= 14:
                axes.bar_label(bars, [f"{share:.0f}" if share else "" for share in of_run], padding=1, color=INK)
        labels = [str(first) if first == last else f"{first}–{last}" for first, last in bins]
        axes.set_xticks(range(len(bins)), labels, fontsize=9 if len(bins) <= 6 else 7)
        axes.grid(visible=False, axis="x")
        axes.set_xlabel("rank of the true one")
        axes.set_ylabel("% of the queries")

    return svg(name, draw)


def svg(name: str, draw: Callable[[Axes], None]) -> str:
    """Return the SVG element of what `draw` draws; no display is needed."""
    settings = {"svg.fonttype": "none", "svg.hashsalt": name, "axes.formatter.useoffset": False, "font.size": 9}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=INCHES, layout="constrained")
        axes = figure.add_subplot()
        axes.grid(color=INK, alpha=0.12, linewidth=0.7)
        draw(axes)
        axes.set_axisbelow(True)
        for side, spine in axes.spines.items():
            spine.set(visible=side == "bottom", color=INK, alpha=0.4)
        axes.tick_params(color=INK, labelcolor=INK, length=0)
        for label in (axes.xaxis.label, axes.yaxis.label, axes.xaxis.offsetText, axes.yaxis.offsetText):
            label.set_color(INK)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True)
    return embed_svg(file.getvalue(), name)


def embed_svg(text: str, name: str) -> str:
    """Return an SVG file as an element of a page with several plots.

    Ids become unique to this plot, and the parts of a file are removed: namespaces, metadata, a style sheet that would
    apply to the whole page, and a size in points.
    """
    root = ElementTree.fromstring(text)
    prefix = "".join(letter if letter.isalnum() else "-" for letter in name) + "-"
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        if "id" in attributes:
            attributes["id"] = prefix + attributes["id"]
        for key, value in attributes.items():
            value = value.replace("url(#", f"url(#{prefix}").replace(INK, "currentColor")
            attributes[key] = f"#{prefix}{value[1:]}" if key == "href" else value
        element.attrib.clear()
        element.attrib.update(attributes)
    for key in ("width", "height", "version"):
        del root.attrib[key]
    root.attrib |= {"role": "img", "aria-label": name}
    return ElementTree.tostring(root, encoding="unicode")
