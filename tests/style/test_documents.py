"""Documents name only what is there: files by path, and each other by link."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    path
    for path in ROOT.rglob("*.md")
    if path.relative_to(ROOT).parts[0] not in (".venv", "build", "dist")
    and ".git" not in path.parts
)
LINK = re.compile(r"\]\(([^)#:]+)\)")
# A path of this tree in backquotes, such as `vmm/irq.py` or `tests/unit/boot`.
NAMED = re.compile(r"`((?:vmm|devices|tests|packaging|benchmarks|docs)/[\w./-]*)`")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_somewhere(document):
    lost = [link for link in LINK.findall(document.read_text()) if "/" in link or "." in link]
    lost = [link for link in lost if not (document.parent / link).exists()]
    assert not lost


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_named_files_exist(document):
    named = set(NAMED.findall(document.read_text()))
    lost = [path for path in named if not (ROOT / path).exists()]
    assert not lost
