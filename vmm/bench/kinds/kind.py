"""What all kinds of measurements have in common."""

from __future__ import annotations

import bisect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vmm.bench.tables import Table
from vmm.bench.trial import Trial

# Edges of every histogram: ten in each power of ten, so that those of several runs add up.
EDGES = tuple(10 ** (n / 10 - 1) for n in range(71))


@dataclass(frozen=True)
class Metric:
    """A figure's unit, and whether `lower` or `higher` is better."""

    unit: str
    better: str = "lower"


@dataclass(frozen=True)
class Sample:
    """What one run found: figures by their names, and counts by EDGES."""

    values: Mapping[str, float]
    histograms: Mapping[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Setup:
    """What a run gets: ``start(kernel, more)`` begins a Trial with that guest.

    ``kernel`` is None for the measurement's own; ``more`` are further names for templates.
    ``folder`` is for the tiny guests, ``memory`` is in bytes, ``timeout`` in s.
    """

    start: Callable[[Path | None, Mapping[str, str]], Trial]
    folder: Path
    memory: int
    timeout: float
    options: Any


class Kind(ABC):
    """A kind of measurement; ``read`` and ``run`` are called on the main thread only."""

    title = ""

    @abstractmethod
    def read(self, table: Table) -> Any:
        """Its own keys of a measurement, checked: what ``Setup.options`` is."""

    @abstractmethod
    def metric(self, name: str, options: Any) -> Metric:
        """Unit and direction of one of its figures."""

    @abstractmethod
    def run(self, setup: Setup) -> Sample:
        """One run of one contender. TrialError: it failed."""


def histogram(values: list[float]) -> list[int]:
    """Counts between EDGES; what lies outside counts with the first or the last."""
    counts = [0] * (len(EDGES) - 1)
    for value in values:
        at = bisect.bisect_right(EDGES, value) - 1
        counts[min(max(at, 0), len(counts) - 1)] += 1
    return counts
