"""A definitions file, TOML or JSON: contenders, measurements, and the words that both may use."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vmm.bench.kinds import registry
from vmm.bench.model import SECONDS, Contender, Measurement
from vmm.bench.tables import Table
from vmm.bench.template import Word, uses
from vmm.errors import ConfigError

FORMAT = 1
CONTENDER_KEYS = (
    "name, command, env, files, version, prepare, exits, timing, prefault, optional, terminal,"
    " limit"
)
MEASUREMENT_KEYS = (
    "name, kind, memory, cpus, kernel, initramfs, cmdline, disk, rounds, warmup, timeout,"
    " contenders, baseline, and those of its kind"
)


@dataclass(frozen=True)
class Definitions:
    """What a file says, with the folder that relative paths in it are meant from."""

    title: str
    here: Path
    variables: Mapping[str, str]
    contenders: tuple[Contender, ...]
    measurements: tuple[Measurement, ...]


def read(path: Path, variables: Mapping[str, str]) -> Definitions:
    """The file's definitions, with these variables in place of its own; ConfigError tells all."""
    try:
        text = path.read_text(encoding="utf-8")
        whole = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}; name a TOML or JSON file"]) from error
    except ValueError as error:
        raise ConfigError([f"{path} is no {path.suffix[1:].upper() or 'TOML'}: {error}"]) from error
    problems: list[str] = []
    found = _definitions(Table(whole, str(path), problems), path, variables)
    if problems:
        raise ConfigError(problems)
    return found


def _definitions(table: Table, path: Path, variables: Mapping[str, str]) -> Definitions:
    version = table.take("format", int, FORMAT)
    if version != FORMAT:
        table.wrong(f"`format` is {version}; this program reads {FORMAT}")
    title = table.take("title", str, path.stem)
    baseline = table.take("baseline", str, "")
    words = table.texts("variables")
    for name in variables:
        if name not in words:
            table.wrong(f"--set {name}: the file has these variables: {', '.join(words) or 'none'}")
    contenders = tuple(_contender(one) for one in table.tables("contender"))
    names = [contender.name for contender in contenders]
    for name in {name for name in names if names.count(name) > 1}:
        table.wrong(f"two contenders are called {name!r}")
    questions = tuple(_measurement(one, names, baseline) for one in table.tables("measurement"))
    _one_each(table, [question.name for question in questions])
    table.done("format, title, baseline, variables, contender, measurement")
    here = path.resolve().parent
    return Definitions(title, here, {**words, **variables}, contenders, questions)


def _one_each(table: Table, questions: list[str]) -> None:
    for name in {name for name in questions if questions.count(name) > 1}:
        table.wrong(f"two measurements are called {name!r}")
    if not questions:
        table.wrong("there is no [[measurement]]")


def _contender(table: Table) -> Contender:
    found = Contender(
        name=table.take("name", str) or "?",
        command=_command(table, "command"),
        env=table.texts("env"),
        files=_files(table),
        version=_command(table, "version", optional=True),
        prepare=_command(table, "prepare", optional=True),
        exits=_command(table, "exits", optional=True),
        timing=table.texts("timing"),
        prefault=table.texts("prefault"),
        optional=table.take("optional", bool, False),
        terminal=table.take("terminal", bool, False),
        limit=table.size("limit", "1024T"),
    )
    for key, wanted in (("timing", {"pattern", "unit"}), ("prefault", {"off", "on"})):
        given = set(getattr(found, key))
        if given and given != wanted:
            table.wrong(f"`{key}` must have {' and '.join(sorted(wanted))}, not {sorted(given)}")
    if not found.command:
        table.wrong("`command` must have words")
    if found.terminal and uses(found.command, "serial"):
        table.wrong("`terminal` or {serial}, not both: one place where the guest's words come from")
    _check_timing(table, found.timing)
    table.done(CONTENDER_KEYS)
    return found


def _check_timing(table: Table, timing: Mapping[str, str]) -> None:
    if set(timing) != {"pattern", "unit"}:
        return
    try:
        groups = set(re.compile(timing["pattern"]).groupindex)
    except re.error as error:
        table.wrong(f"`timing.pattern` is no regular expression: {error}")
        return
    if not {"name", "time"} <= groups:
        table.wrong("`timing.pattern` must have the groups (?P<name>...) and (?P<time>...)")
    if timing["unit"] not in SECONDS:
        table.wrong(f"`timing.unit` must be one of {', '.join(SECONDS)}, not {timing['unit']!r}")


def _command(table: Table, key: str, optional: bool = False) -> tuple[Word, ...]:
    found = table.take(key, list, [] if optional else None) or []
    words: list[Word] = []
    for word in found:
        if isinstance(word, list) and all(isinstance(part, str) for part in word):
            words.append(tuple(word))
        elif isinstance(word, str):
            words.append(word)
        else:
            table.wrong(f"`{key}`: a word must be text or a list of texts, not {word!r}")
    return tuple(words)


def _files(table: Table) -> dict[str, int | str]:
    found: dict[str, int | str] = {}
    for name, value in (table.take("files", dict, {}) or {}).items():
        one = Table(value, f"{table.where}.files.{name}", table.problems)
        if Path(name).name != name:
            one.wrong("a file's name must not have a folder: it is made in {folder}")
        if isinstance(value, dict) and "text" in value:
            found[name] = one.take("text", str, "")
        else:
            found[name] = one.size("size", "0K") if "size" in (value or {}) else 0
        one.done("text, or size")
    return found


def _measurement(table: Table, names: list[str], baseline: str) -> Measurement:
    kind = table.take("kind", str) or ""
    if kind not in registry.KINDS:
        table.wrong(f"`kind` {kind!r} does not exist; there are {', '.join(registry.KINDS)}")
        return Measurement(table.take("name", str) or "?", "", 1, 1, 1, 0, 1, {}, None, (), "")
    keys = ("kernel", "initramfs", "cmdline", "disk")
    given = {key: table.take(key, str, "") for key in keys}
    found = Measurement(
        name=table.take("name", str, kind),
        kind=kind,
        memory=table.size("memory", "128M"),
        cpus=table.number("cpus", 1, 1, 4096),
        rounds=table.number("rounds", 10, 1, 10_000),
        warmup=table.number("warmup", 1, 0, 100),
        timeout=table.number("timeout", 20.0, 0.1, 86400.0, float),
        given={key: text for key, text in given.items() if text},
        options=registry.KINDS[kind].read(table),
        contenders=_chosen(table, names),
        baseline=table.take("baseline", str, baseline),
    )
    if found.baseline and found.baseline not in names:
        table.wrong(f"`baseline` {found.baseline!r} is no contender; there are {', '.join(names)}")
    table.done(MEASUREMENT_KEYS)
    return found


def _chosen(table: Table, names: list[str]) -> tuple[str, ...]:
    chosen = table.take("contenders", list, names)
    for name in chosen:
        if name not in names:
            table.wrong(f"`contenders`: {name!r} is not defined; there are {', '.join(names)}")
    return tuple(chosen)


def program_of(contender: Contender, variables: Mapping[str, str | None]) -> str | None:
    """The program's path, or None where it is missing or its name cannot be told."""
    first = contender.command[0] if contender.command else ""
    text = first if isinstance(first, str) else first[0]
    for name, value in variables.items():
        text = text.replace(f"{{{name}}}", value or "")
    return text if "{" in text else shutil.which(text)
