"""Pictures of a result by matplotlib: every run as a point, or a histogram. SVG and PNG."""

from __future__ import annotations

import io
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vmm.bench.kinds.kind import EDGES
from vmm.bench.markdown import heading
from vmm.bench.results import Document
from vmm.bench.summary import Block, blocks, values_of
from vmm.errors import HostError

WIDTH = 8.0
ROW_HEIGHT = 0.42
# By Okabe and Ito: told apart by everybody.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
STYLE = {
    "svg.hashsalt": "vllmd-hypervisor-bench", "svg.fonttype": "path", "font.size": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10,
    "axes.titlelocation": "left", "figure.constrained_layout.use": True,
}  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """The same picture twice; ``name`` is fit for a file, ``metric`` empty for one of several."""

    name: str
    title: str
    measurement: str
    metric: str
    svg: bytes
    png: bytes


def draw(document: Document) -> Iterator[Picture]:
    """One for each metric with figures, each histogram, each boot. HostError without matplotlib."""
    plot = _matplotlib()
    with plot.rc_context(STYLE):
        for block in blocks(document):
            if block.figures and block.measurement["kind"] != "boot":
                figure = _points(plot, block)
                name = block.measurement["name"]
                yield _finish(plot, heading(block), figure, name, block.metric)
        for measurement in document["measurements"]:
            name = measurement["name"]
            if measurement["kind"] == "boot":
                title = f"{name}: phases, ms from exec"
                figure = _timeline(plot, measurement, title)
                if figure is not None:
                    yield _finish(plot, title, figure, name)
            for what in _histograms(measurement):
                title = f"{name}: {what}, share of times above"
                yield _finish(plot, title, _tails(plot, measurement, what, title), name)


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise HostError(
            "pictures need matplotlib", "pip install 'vllmd-hypervisor[bench]', or --no-pictures"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _finish(plot: Any, title: str, figure: Any, measurement: str, metric: str = "") -> Picture:
    svg, png = io.BytesIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    figure.savefig(png, format="png", dpi=120)
    plot.close(figure)
    name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:80]
    return Picture(name, title, measurement, metric, svg.getvalue(), png.getvalue())


def _points(plot: Any, block: Block) -> Any:
    """Each contender's runs as points on a line, with median and interval."""
    count = len(block.figures)
    figure, axes = plot.subplots(figsize=(WIDTH, 1.1 + ROW_HEIGHT * count))
    for row, one in enumerate(block.figures):
        colour = COLOURS[row % len(COLOURS)]
        values = values_of(block.measurement, one.contender, block.metric)
        places = [row + 0.16 * ((n % 5) - 2) / 2 for n in range(len(values))]
        axes.plot(values, places, ".", color=colour, alpha=0.45, markersize=5)
        axes.plot([one.median.low, one.median.high], [row, row], color=colour, linewidth=6,
                  alpha=0.35, solid_capstyle="butt")  # fmt: skip
        axes.plot([one.median.value] * 2, [row - 0.3, row + 0.3], color=colour, linewidth=2)
    axes.set_yticks(range(count), [one.contender for one in block.figures])
    axes.set_ylim(count - 0.5, -0.5)
    _scale(axes, block)
    axes.set_xlabel(block.unit)
    axes.set_title(heading(block))
    axes.grid(axis="x", alpha=0.3)
    return figure


def _scale(axes: Any, block: Block) -> None:
    """From zero; by powers of ten where the medians are further apart than one picture shows."""
    medians = [one.median.value for one in block.figures]
    if min(medians) > 0 and max(medians) / min(medians) > 30:
        axes.set_xscale("log", subs=[])
        axes.xaxis.get_major_locator().set_params(subs=(1, 2, 5))
        axes.xaxis.set_major_formatter("{x:g}")
    else:
        axes.set_xlim(left=0)


def _timeline(plot: Any, measurement: Document, title: str) -> Any:
    """Each contender's stamps on a line, by their medians; None where nobody came so far.

    The VMM's own phases are times of their own, not stamps from exec: the tables have them.
    """
    rows = [row for row in measurement["rows"] if not row["twin"] and row.get("values")]
    stamps = [name for name in measurement["metrics"] if not name.startswith("vmm ")]
    if not rows or not stamps:
        return None
    figure, axes = plot.subplots(figsize=(WIDTH, 1.4 + ROW_HEIGHT * len(rows)))
    for number, stamp in enumerate(stamps):
        colour = COLOURS[number % len(COLOURS)]
        for place, row in enumerate(rows):
            values = row["values"].get(stamp)
            if values:
                label = stamp if place == 0 else None
                middle = statistics.median(values)
                axes.plot([min(values), max(values)], [place, place], color=colour, linewidth=6,
                          alpha=0.35, solid_capstyle="butt")  # fmt: skip
                axes.plot(middle, place, "|", color=colour, markersize=18, markeredgewidth=2.5,
                          label=label)  # fmt: skip
    axes.set_yticks(range(len(rows)), [row["contender"] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("ms")
    axes.set_title(title)
    axes.grid(axis="x", alpha=0.3)
    figure.legend(frameon=False, loc="outside lower center", ncols=4, markerscale=0.5)
    return figure


def _histograms(measurement: Document) -> list[str]:
    found: dict[str, None] = {}
    for row in measurement["rows"]:
        for name, counts in row.get("histograms", {}).items():
            if len(counts) == len(EDGES) - 1 and sum(counts):
                found[name] = None
    return list(found)


def _tails(plot: Any, measurement: Document, name: str, title: str) -> Any:
    """How many of all times were above each edge: tails show, which bars would hide."""
    figure, axes = plot.subplots(figsize=(WIDTH, 3.6))
    shown = [row for row in measurement["rows"] if name in row.get("histograms", {})]
    for number, row in enumerate(one for one in shown if not one["twin"]):
        counts = row["histograms"][name]
        total = sum(counts)
        above = [sum(counts[n:]) / total for n in range(len(counts) + 1)]
        last = max(n for n, count in enumerate(counts) if count) + 1
        shares = [max(share, 0.3 / total) for share in above[: last + 1]]
        colour = COLOURS[number % len(COLOURS)]
        axes.step(EDGES[: last + 1], shares, where="post", label=row["contender"], color=colour)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.set_xlabel("us")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure
