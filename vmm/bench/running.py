"""A whole run: host, contenders, measurements, one after the other; an interrupt ends it well."""

from __future__ import annotations

import dataclasses
import datetime
import os
import shlex
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from vmm import __version__
from vmm.bench import facts, schedule
from vmm.bench.definitions import Definitions
from vmm.bench.model import Contender, Measurement
from vmm.bench.results import Document
from vmm.bench.schedule import Bench, Tell
from vmm.bench.stats import SEED
from vmm.bench.template import TemplateError, fill_command
from vmm.errors import ConfigError


def narrowed(found: Definitions, only: Sequence[str], rounds: int | None) -> Definitions:
    """Only these measurements and contenders, with so many rounds; ConfigError for a wrong name."""
    questions = [one.name for one in found.measurements]
    names = [one.name for one in found.contenders]
    unknown = [name for name in only if name not in questions and name not in names]
    if unknown:
        raise ConfigError(
            [f"--only {unknown[0]}: there are {', '.join([*questions, *names]) or 'none'}"]
        )
    if rounds is not None and rounds < 1:
        raise ConfigError([f"--rounds {rounds}: at least 1"])
    kept = [one for one in found.measurements if one.name in only] or list(found.measurements)
    if rounds is not None:
        kept = [dataclasses.replace(one, rounds=rounds) for one in kept]
    contenders = [one for one in found.contenders if one.name in only] or found.contenders
    return dataclasses.replace(found, measurements=tuple(kept), contenders=tuple(contenders))


def commands(found: Definitions) -> str:
    """What would be run, as shell lines; a template's problem in its place."""
    lines = []
    bench = Bench(found, Path("PREPARED"), print)
    for question in found.measurements:
        lines.append(f"# {question.name}: {question.rounds} rounds")
        for contender in found.contenders:
            if contender.name in question.contenders:
                lines.append(f"{contender.name}: {_command(bench, contender, question)}")
    return "\n".join(lines)


def _command(bench: Bench, contender: Contender, question: Measurement) -> str:
    own = {"folder": "FOLDER", "socket": "FOLDER/socket", "serial": "FOLDER/serial"}
    kernel = None if question.given.get("kernel") else Path("TINY-GUEST")
    try:
        values = schedule.values_for(bench, contender, question, kernel, {})
        return shlex.join(fill_command(contender.command, {**values, **own}, "command"))
    except TemplateError as error:
        return f"wrong: {error}"


def run(found: Definitions, tell: Tell) -> Document:
    """Measure all; the document says `complete: false` where it was interrupted."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        tell("/dev/kvm is missing or not permitted: contenders that need it will fail")
    document: Document = {
        "title": found.title,
        "started": now(),
        "ended": now(),
        "complete": False,
        "version_of_tool": __version__,
        "seed": SEED,
        "facts": facts.host_facts(),
        "contenders": {},
        "measurements": [],
    }
    with tempfile.TemporaryDirectory(prefix="vllmd-bench-") as name:
        try:
            _all(Bench(found, Path(name), tell), document)
            document["complete"] = True
        except KeyboardInterrupt:
            tell("interrupted: what was measured is written")
    document["ended"] = now()
    document["facts"]["load at the end"] = facts.load()
    return document


def _all(bench: Bench, document: Document) -> None:
    contenders = bench.contenders()
    for one in contenders:
        words = [word if isinstance(word, str) else f"[{' '.join(word)}]" for word in one.command]
        about = {"version": bench.version(one), "command": " ".join(words)}
        document["contenders"][one.name] = about
    for question in bench.definitions.measurements:
        began = time.monotonic()
        bench.tell(f"{question.name} ...")
        rows: list[schedule.Row] = []
        try:
            schedule.measure_into(rows, bench, contenders, question)
        finally:
            document["measurements"].append(schedule.as_document(question, rows))
        bench.tell(f"{question.name}: {time.monotonic() - began:.0f} s")


def now() -> str:
    """Local time with its zone, to the second."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def anything(document: Document) -> bool:
    """Whether any contender was measured at all."""
    rows = [row for one in document["measurements"] for row in one["rows"]]
    return any(row.get("values") for row in rows)
