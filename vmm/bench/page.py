"""A result as one HTML page that needs nothing else: no script, no font, no address."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from vmm.bench import markdown
from vmm.bench.pictures import Picture
from vmm.bench.results import Document
from vmm.bench.summary import Block, blocks

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; overflow-wrap: anywhere; }
h2 { margin: 2.2rem 0 .2rem; font-size: 1.1rem; }
p.context, p.legend { opacity: .75; margin: .2rem 0 .6rem; }
table { border-collapse: collapse; margin: .6rem 0; max-width: 100%; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
td.number { font-variant-numeric: tabular-nums; }
tr.differs td:nth-child(4) { font-weight: 700; }
p.failed { border-left: 4px solid #d55e00; padding: .3rem .7rem; background: var(--soft); }
img { width: 100%; height: auto; background: #fff; border-radius: 6px; margin: .4rem 0; }
"""


def page(document: Document, pictures: Sequence[Picture], without: str = "") -> str:
    """The page; ``without``: why there are no pictures."""
    title = escape(document["title"])
    parts = [f"<h1>{title}</h1>", f"<p>{escape(_state(document))}</p>", _host(document)]
    if without:
        parts.append(f'<p class="failed">No pictures: {escape(without)}</p>')
    parts.append(f'<p class="legend">{escape(markdown.LEGEND)}</p>')
    for block in blocks(document):
        parts.append(_section(block))
        name, metrics = block.measurement["name"], list(block.measurement["metrics"])
        # Those of several figures come behind the last of them.
        wanted = {block.metric, ""} if block.metric in metrics[-1:] else {block.metric}
        parts += [
            _image(one) for one in pictures if one.measurement == name and one.metric in wanted
        ]
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width">'
        f'<link rel="icon" href="data:,"><style>{STYLE}</style></head>\n<body>\n{body}\n'
        "</body></html>\n"
    )


def _state(document: Document) -> str:
    return markdown.state(document).replace("**", "")


def _host(document: Document) -> str:
    facts = [[name, text] for name, text in document["facts"].items()]
    versions = [
        [name, str(about.get("version", "unknown")), str(about.get("command", ""))]
        for name, about in document["contenders"].items()
    ]
    host = _table(["host", ""], facts)
    contenders = _table(["contender", "version", "command"], versions)
    return f"<details><summary>Host and contenders</summary>{host}{contenders}</details>"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], marked: Sequence[bool] = ()) -> str:
    head = "".join(f"<th>{escape(one)}</th>" for one in heads)
    lines = []
    for number, row in enumerate(rows):
        name = ' class="differs"' if number < len(marked) and marked[number] else ""
        lines.append(f"<tr{name}>" + "".join(f"<td>{escape(one)}</td>" for one in row) + "</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _section(block: Block) -> str:
    parts = [
        f"<h2>{escape(markdown.heading(block))}</h2>",
        f'<p class="context">{escape(markdown.context(block))}</p>',
    ]
    if block.figures:
        marked = [figure.differs for figure in block.figures]
        parts.append(_table(markdown.HEADS, markdown.rows(block), marked))
    for name, error in block.errors:
        parts.append(f'<p class="failed">{escape(name)} failed: {escape(error)}</p>')
    return "\n".join(parts)


def _image(picture: Picture) -> str:
    # As an image the SVG's names meet no other picture's.
    data = base64.b64encode(picture.svg).decode()
    return f'<img alt="{escape(picture.title)}" src="data:image/svg+xml;base64,{data}">'
