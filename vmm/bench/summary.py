"""What a result says: medians, ratios to the baseline, noise floors; from its single values."""

from __future__ import annotations

from dataclasses import dataclass

from vmm.bench.results import Document
from vmm.bench.stats import (
    Interval,
    beyond,
    median_interval,
    noise_floor,
    permutation_test,
    ratio_interval,
)


@dataclass(frozen=True)
class Figure:
    """A contender's figure: its median, and how it stands to the baseline where there is one."""

    contender: str
    count: int
    median: Interval
    ratio: Interval | None = None
    p: float | None = None
    differs: bool = False


@dataclass(frozen=True)
class Block:
    """One metric of one measurement. ``floor``: how far A is from A, or None when not known."""

    measurement: Document
    metric: str
    unit: str
    better: str
    figures: tuple[Figure, ...]
    errors: tuple[tuple[str, str], ...]
    floor: float | None


def values_of(
    measurement: Document, contender: str, metric: str, twin: bool = False
) -> list[float]:
    """All values of a contender's metric; empty where it failed or has none."""
    for row in measurement["rows"]:
        if row["contender"] == contender and row["twin"] == twin and "error" not in row:
            return list(row["values"].get(metric, []))
    return []


def blocks(document: Document) -> list[Block]:
    """All metrics of all measurements, in order; a measurement in which all failed has one."""
    return [
        block(measurement, metric)
        for measurement in document["measurements"]
        for metric in (measurement["metrics"] or {"": None})
    ]


def block(measurement: Document, metric: str) -> Block:
    """One metric."""
    facts = measurement["metrics"].get(metric, {"unit": "", "better": "lower"})
    base = values_of(measurement, measurement["baseline"], metric)
    again = values_of(measurement, measurement["baseline"], metric, twin=True)
    floor = noise_floor(base, again) if base and again else None
    rows = [row for row in measurement["rows"] if not row["twin"]]
    figures = []
    for row in rows:
        values = values_of(measurement, row["contender"], metric)
        if values:
            is_base = row["contender"] == measurement["baseline"]
            figures.append(_figure(row["contender"], values, [] if is_base else base, floor))
    errors = tuple((row["contender"], row["error"]) for row in rows if "error" in row)
    return Block(measurement, metric, facts["unit"], facts["better"], tuple(figures), errors, floor)


def _figure(name: str, values: list[float], base: list[float], floor: float | None) -> Figure:
    median = median_interval(values)
    if not base:
        return Figure(name, len(values), median)
    ratio = ratio_interval(values, base)
    p = permutation_test(values, base)
    return Figure(name, len(values), median, ratio, p, beyond(ratio, p, floor or 0.0))
