"""What a definitions file holds, decided and checked: definitions.py makes these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vmm.bench.template import Word

# Units of a contender's own times.
SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


@dataclass(frozen=True)
class Contender:
    """How one VMM is started; all texts are templates.

    ``files`` are made in a folder of its own for each start: a size in bytes of zeros, or a text.
    ``prepare`` runs once. ``optional``: left out where its program is missing. ``limit``: the most
    memory in bytes that it is asked for. ``terminal``: its stdin and stdout are a pseudoterminal,
    raw, for a VMM that starts on nothing else.
    """

    name: str
    command: tuple[Word, ...]
    env: Mapping[str, str]
    files: Mapping[str, int | str]
    version: tuple[Word, ...] = ()
    prepare: tuple[Word, ...] = ()
    exits: tuple[Word, ...] = ()
    timing: Mapping[str, str] = field(default_factory=dict)
    prefault: Mapping[str, str] = field(default_factory=dict)
    optional: bool = False
    terminal: bool = False
    limit: int = 0


@dataclass(frozen=True)
class Measurement:
    """One question to all contenders; ``options`` are its kind's. Sizes in bytes, times in s."""

    name: str
    kind: str
    memory: int
    cpus: int
    rounds: int
    warmup: int
    timeout: float
    given: Mapping[str, str]
    options: Any
    contenders: tuple[str, ...]
    baseline: str
