"""A result as Markdown: the host, the contenders, a table for each measurement."""

from __future__ import annotations

from vmm.bench.results import Document
from vmm.bench.summary import Block, Figure, blocks
from vmm.bench.words import cell, number, percent, table

SETTINGS = ("memory_mib", "cpus", "rounds", "warmup")
SETTINGS_TEXT = "{memory_mib} MiB, {cpus} vCPU(s), {rounds} rounds after {warmup} dropped"
LEGEND = (
    "Medians with their 95 % intervals (bootstrap). p: how likely a distance as large is by chance "
    "(permutation test of a contender against the baseline). Noise: how far the baseline is from "
    "itself, measured as one more contender in the same rounds. A ratio in bold is a difference: "
    "p below 0.05 and beyond the noise."
)


def report(document: Document) -> str:
    """The whole document."""
    parts = [f"# {cell(document['title'])}", state(document), host(document), LEGEND]
    parts += [section(block) for block in blocks(document)]
    return "\n\n".join(parts) + "\n"


def state(document: Document) -> str:
    """When, and whether it came to its end."""
    text = f"{document['started']} to {document['ended']}."
    return text if document["complete"] else f"{text} **Interrupted: not all was measured.**"


def host(document: Document) -> str:
    """The host's facts, and the contenders' versions."""
    facts = [[name, text] for name, text in document["facts"].items()]
    versions = [
        [name, str(about.get("version", "unknown")), str(about.get("command", ""))]
        for name, about in document["contenders"].items()
    ]
    heads = ["contender", "version", "command"]
    return f"{table(['host', ''], facts)}\n\n{table(heads, versions)}"


def heading(block: Block) -> str:
    """Of a metric: the question, the figure, its unit, which is better."""
    name, metric = block.measurement["name"], block.metric.replace("_", " ")
    name = name if metric in name else f"{name}: {metric}"
    unit = f"{block.unit}, " if block.unit else ""
    return f"{name} ({unit}{block.better} is better)"


def context(block: Block) -> str:
    """Under which the figures were found."""
    settings = {key: block.measurement["settings"].get(key, "?") for key in SETTINGS}
    text = SETTINGS_TEXT.format(**settings)
    floor = f"; noise {percent(block.floor)}" if block.floor is not None else ""
    return f"{block.measurement['title']}; {text}{floor}"


HEADS = ["contender", "median", "runs", "ratio", "p"]


def rows(block: Block) -> list[list[str]]:
    """Cells by HEADS: each contender that was measured."""
    return [_row(figure) for figure in block.figures]


def section(block: Block) -> str:
    """A heading, a table, and those that failed."""
    lines = [f"## {cell(heading(block))}", cell(context(block))]
    if block.figures:
        shown = table(HEADS, rows(block))
        for figure in block.figures:
            if figure.differs and figure.ratio:
                ratio = cell(number(figure.ratio))
                shown = shown.replace(f"| {ratio} |", f"| **{ratio}** |")
        lines.append(shown)
    lines += [f"- {cell(name)} failed: {cell(error)}" for name, error in block.errors]
    return "\n\n".join(lines)


def _row(figure: Figure) -> list[str]:
    ratio = number(figure.ratio) if figure.ratio else "1"
    p = f"{figure.p:.4f}" if figure.p is not None else ""
    return [figure.contender, number(figure.median), str(figure.count), ratio, p]
