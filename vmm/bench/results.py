"""A result's file: JSON of a versioned form, with every single value, written whole or not."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vmm.errors import ConfigError, HostError

SCHEMA = "vllmd-hypervisor-bench"
VERSION = 1
Document = dict[str, Any]
# What a measurement's tables hold, for which load() vouches.
MEASUREMENT = {"name": str, "kind": str, "title": str, "baseline": str, "settings": dict,
               "metrics": dict, "rows": list}  # fmt: skip
WHOLE = {"title": str, "started": str, "ended": str, "complete": bool, "facts": dict,
         "contenders": dict, "measurements": list}  # fmt: skip


def write(path: Path, text: str | bytes) -> None:
    """A file with this content, or the one from before; HostError where it cannot be written."""
    data = text.encode() if isinstance(text, str) else text
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
        raise HostError(
            f"cannot write {path}: {error.strerror}", "name a folder to write to with --output"
        ) from error


def save(path: Path, document: Document) -> None:
    """Write a result."""
    whole = {"schema": SCHEMA, "version": VERSION, **document}
    write(path, json.dumps(whole, indent=1, allow_nan=False) + "\n")


def load(path: Path) -> Document:
    """A result whose parts have the types that they must have; ConfigError tells what has not."""
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}; name a result's JSON file"]) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError([f"{path} is no JSON: {error}"]) from error
    if not isinstance(whole, dict) or whole.get("schema") != SCHEMA:
        raise ConfigError([f"{path} is no result of vllmd-hypervisor-bench: it has no such schema"])
    if whole.get("version") != VERSION:
        raise ConfigError([f"{path} has version {whole.get('version')!r}; {VERSION} is read here"])
    problems = list(_wrong(whole))
    if problems:
        raise ConfigError([f"{path}: {problem}" for problem in problems])
    return whole


def _wrong(whole: Document) -> list[str]:
    problems = _types(whole, WHOLE, "the file")
    if problems:
        return problems
    for part in ("facts", "contenders"):
        for key, value in whole[part].items():
            if part == "facts" and not isinstance(value, str):
                problems.append(f"facts.{key} must be text, not {value!r}")
            if part == "contenders" and not isinstance(value, dict):
                problems.append(f"contenders.{key} must be a table, not {value!r}")
    for number, one in enumerate(whole["measurements"]):
        where = f"measurements[{number}]"
        wrong = _types(one, MEASUREMENT, where)
        problems += wrong or [*_metrics(one["metrics"], where), *_rows(one, where)]
    return problems


def _types(value: Any, wanted: Mapping[str, type], where: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{where} must be a table, not {value!r}"]
    return [
        f"{where}: `{key}` must be of type {kind.__name__}, not {value.get(key)!r}"
        for key, kind in wanted.items()
        if not isinstance(value.get(key), kind)
    ]


def _metrics(metrics: Document, where: str) -> list[str]:
    problems = []
    for name, metric in metrics.items():
        problems += _types(metric, {"unit": str, "better": str}, f"{where}.metrics.{name}")
    return problems


def _rows(measurement: Document, where: str) -> list[str]:
    problems = []
    for number, row in enumerate(measurement["rows"]):
        here = f"{where}.rows[{number}]"
        wrong = _types(row, {"contender": str, "twin": bool}, here)
        if not wrong and "error" in row:
            wrong = _types(row, {"error": str}, here)
        elif not wrong:
            wrong = _types(row, {"values": dict, "histograms": dict}, here)
            wrong = wrong or _numbers(row, set(measurement["metrics"]), here)
        problems += wrong
    return problems


def _numbers(row: Document, metrics: set[str], where: str) -> list[str]:
    problems = []
    for key in ("values", "histograms"):
        for name, some in row[key].items():
            fine = isinstance(some, list) and some and all(_is_number(one) for one in some)
            if not fine:
                problems.append(f"{where}.{key}.{name} must be a list of numbers, not empty")
            elif key == "values" and name not in metrics:
                problems.append(f"{where}.values.{name} is no metric of the measurement")
    return problems


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
