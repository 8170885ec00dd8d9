"""Figures and tables as text."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vmm.bench.stats import Interval


def short(value: float) -> str:
    """Three digits that count: 0.0123, 1.23, 12.3, 1234."""
    if math.isnan(value):
        return "none"
    if not value:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{value:.{min(max(digits, 0), 6)}f}"


def number(interval: Interval) -> str:
    """A figure with its interval, where that is wider than the figure's digits."""
    ends = short(interval.low), short(interval.high)
    return (
        short(interval.value)
        if ends[0] == ends[1]
        else f"{short(interval.value)} ({ends[0]} to {ends[1]})"
    )


def percent(share: float | None) -> str:
    """A share as per cent; unknown as a dash."""
    if share is None:
        return "-"
    return f"{share * 100:.1f} %" if math.isfinite(share) else "unlimited"


def cell(text: str) -> str:
    """Text that ends no cell and begins no mark-up of its own."""
    plain = " ".join(text.split()).replace("\\", "\\\\")
    for mark in "|<>`*[]":
        plain = plain.replace(mark, f"\\{mark}")
    return plain


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown; cells are text, not mark-up."""
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    lines += [f"| {' | '.join(cell(one) for one in row)} |" for row in rows]
    return "\n".join(lines)
