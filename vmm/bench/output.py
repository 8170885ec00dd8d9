"""Writes a result's files into a folder: JSON, Markdown, page, pictures."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from vmm.bench import markdown, page, pictures, results
from vmm.bench.results import Document
from vmm.errors import HostError


def folder(path: Path) -> Path:
    """The folder, made where it is not there; HostError before anything is measured in vain."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HostError(
            f"cannot make the folder {path}: {error.strerror}", "name another with --output"
        ) from error
    probe = path / f".probe-{os.getpid()}"
    results.write(probe, b"")
    probe.unlink()
    return path


def write_all(
    document: Document, folder: Path, with_pictures: bool, tell: Callable[[str], None]
) -> Path:
    """The JSON first; its name is the time at which it began. Returns its path."""
    stem = document["started"][:19].replace(":", "").replace("T", "-")
    path = folder / f"{stem}.json"
    results.save(path, document)
    write_reports(document, folder, stem, with_pictures, tell)
    return path


def write_reports(
    document: Document,
    folder: Path,
    stem: str,
    with_pictures: bool,
    tell: Callable[[str], None],
) -> None:
    """Markdown and page, pictures in a folder beside them; without matplotlib the page says so."""
    results.write(folder / f"{stem}.md", markdown.report(document))
    drawn: list[pictures.Picture] = []
    without = "" if with_pictures else "not wanted (--no-pictures)"
    if with_pictures:
        try:
            drawn = list(pictures.draw(document))
        except HostError as error:
            without = str(error)
            tell(f"no pictures: {without}")
    if drawn:
        (folder / stem).mkdir(exist_ok=True)
    for picture in drawn:
        results.write(folder / stem / f"{picture.name}.svg", picture.svg)
        results.write(folder / stem / f"{picture.name}.png", picture.png)
    results.write(folder / f"{stem}.html", page.page(document, drawn, without))
