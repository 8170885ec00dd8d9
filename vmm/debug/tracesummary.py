"""Exits by name: how many, how often, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from vmm.debug.exitnames import ExitNames
    from vmm.debug.tracerecord import Array

SHOWN = 40
HEADS = ("exit", "count", "per s", "total ms", "mean us", "p99 us", "share")


def named(records: Array, names: ExitNames) -> tuple[list[str], Array]:
    """(names, the index into them of each record); each kind of exit is named once."""
    # Ports, MSRs and guest physical addresses (52 bits) leave room for the rest.
    keys = records["address"] & np.uint64((1 << 55) - 1)
    keys |= records["is_write"].astype("u8") << np.uint64(55)
    keys |= records["reason"].astype("u8") << np.uint64(56)
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    kinds = [
        names.name(int(one["reason"]), int(one["address"]), bool(one["is_write"]))
        for one in records[first]
    ]
    order = {name: number for number, name in enumerate(dict.fromkeys(kinds))}
    codes = np.array([order[kind] for kind in kinds], "i8")
    return list(order), codes[inverse]


@dataclass(frozen=True)
class Row:
    """One kind of exit. ``share`` is its part of all time in the VMM, 0 to 1."""

    name: str
    count: int
    rate: float
    total_ms: float
    mean_us: float
    p99_us: float
    share: float


class Summary:
    """Rows by total time in the VMM, the largest first; ``seconds`` from first to last record."""

    def __init__(self, rows: list[Row], seconds: float, dropped: int) -> None:
        self.rows = rows
        self.seconds = seconds
        self.dropped = dropped
        self.count = sum(row.count for row in rows)

    def __getitem__(self, name: str) -> Row:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no exit {name!r} was traced; there are: {[r.name for r in self.rows]}")

    def __len__(self) -> int:
        return len(self.rows)

    def _head(self) -> str:
        rate = f"{self.count / self.seconds:,.0f} per s" if self.seconds else "-"
        head = f"{self.count:,} exits in {self.seconds:.6f} s ({rate}), {self.dropped:,} dropped"
        more = len(self.rows) - SHOWN
        return head + (f"; {more} kinds more are not shown" if more > 0 else "")

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (
                row.name, f"{row.count:,}", f"{row.rate:,.1f}", f"{row.total_ms:,.3f}",
                f"{row.mean_us:,.2f}", f"{row.p99_us:,.2f}", f"{row.share:.1%}",
            )
            for row in self.rows[:SHOWN]
        ]  # fmt: skip

    def __str__(self) -> str:
        table = [HEADS, *self._cells()]
        widths = [max(len(line[n]) for line in table) for n in range(len(HEADS))]
        lines = [
            "  ".join(
                [
                    cell.rjust(w) if n else cell.ljust(w)
                    for n, (cell, w) in enumerate(zip(line, widths, strict=True))
                ]
            )
            for line in table
        ]
        return "\n".join([*lines, self._head()])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(text)}</th>" for text in HEADS)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(text)}</td>" for text in line) + "</tr>"
            for line in self._cells()
        )
        return f"<table><tr>{head}</tr>{body}</table><p>{escape(self._head())}</p>"


def summarize(records: Array, names: ExitNames, dropped: int) -> Summary:
    """The summary of ``records`` (tracerecord.FIELDS, in the order of time)."""
    if not len(records):
        return Summary([], 0.0, dropped)
    kinds, codes = named(records, names)
    begin = int(records["ts_ns"][0] - records["guest_ns"][0])
    seconds = (int(records["ts_ns"][-1] + records["vmm_ns"][-1]) - begin) / 1e9
    everything = float(records["vmm_ns"].sum()) or 1.0
    order = np.argsort(codes, kind="stable")
    times = np.split(records["vmm_ns"][order], np.cumsum(np.bincount(codes))[:-1])
    rows = [
        Row(
            name, len(ns), len(ns) / seconds if seconds else 0.0, float(ns.sum()) / 1e6,
            float(ns.mean()) / 1e3, float(np.percentile(ns, 99)) / 1e3,
            float(ns.sum()) / everything,
        )
        for name, ns in zip(kinds, times, strict=True)
    ]  # fmt: skip
    return Summary(sorted(rows, key=lambda row: -row.total_ms), seconds, dropped)
