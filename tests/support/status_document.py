"""What docs/status-json.md says of each key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def documented() -> dict[str, str]:
    """Unit by path, as in ``disks[].size``; ``NAME`` stands for any name."""
    found = {}
    for line in (ROOT / "docs/status-json.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 3:
            for path in re.findall(r"`([^`]+)`", cells[0]):
                found[path] = cells[1]
    return found


def paths(value: object, above: str = "") -> Iterator[str]:
    """The path of each value of a status that is no container."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from paths(item, f"{above}.{key}".lstrip("."))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for item in value:
            yield from paths(item, f"{above}[]")
    else:
        yield above


def is_documented(path: str) -> bool:
    """By its name, or as the NAME of its parent."""
    parent = path.rpartition(".")[0]
    return path in documented() or f"{parent}.NAME" in documented()
