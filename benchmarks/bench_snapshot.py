"""A new guest, a restore and a fork from Python, beside a C program that makes the same ioctls.

All to the guest's first exit, of 4 MiB of RAM with 16 pages written; the interpreter is up already.
New guests and forks come in rows, the first of which warms up: a row is closed behind its last one,
since threads of the kernel's take a closed VM apart for a while, which the next one would wait for.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.build import compiled
from tests.support.counting_guest import kernel
from vmm.debug.guest import Guest

RAM = "4M"
# In a row, the first of which does not count.
EACH = 21
SETTLE_SECONDS = 0.1
# How many times C's a figure may be.
AIMS = {"new": 3.0, "restore": 2.0, "fork": 2.0}
Row = dict[str, Any]


def ours(what: str, path: Path) -> list[float]:
    """Microseconds of each round."""
    with Guest(kernel=path, memory=RAM) as parent:
        base = parent.snapshot()
        parent.run()
        rounds: dict[str, Callable[[], Guest | None]] = {
            "new": lambda: Guest(kernel=path, memory=RAM),
            "fork": base.fork,
            "restore": lambda: parent.restore(base),
        }
        made: list[Guest] = []
        try:
            return [once(rounds[what], parent, made) for _ in range(EACH)][1:]
        finally:
            for guest in made:
                guest.close()


def once(make: Callable[[], Guest | None], parent: Guest, made: list[Guest]) -> float:
    """One round, to the first exit; a guest made for it goes to those ``made``."""
    started = time.perf_counter()
    guest = make()
    (guest or parent).run()
    seconds = time.perf_counter() - started
    if guest is not None:
        made.append(guest)
    return seconds * 1e6


def theirs(what: str, program: Path) -> list[float]:
    """The same of the C program."""
    out = subprocess.run([program, what, str(EACH)], check=True, capture_output=True, text=True)
    return [float(line) for line in out.stdout.split()][1:]


def measure(rounds: int) -> dict[str, Row]:
    """By what was done: medians and the tenth percentiles of both, interleaved."""
    with tempfile.TemporaryDirectory() as name:
        path = kernel(Path(name))
        program = compiled("snapshot.c", Path(name))
        found: dict[str, tuple[list[float], list[float]]] = {what: ([], []) for what in AIMS}
        for number in range(rounds + 1):
            for what, (mine, c) in found.items():
                some = ours(what, path)
                time.sleep(SETTLE_SECONDS)
                other = theirs(what, program)
                time.sleep(SETTLE_SECONDS)
                if number:
                    mine += some
                    c += other
    return {what: row(what, *both) for what, both in found.items()}


def row(what: str, mine: list[float], c: list[float]) -> Row:
    """What is told of one of them; the ratio is of the tenth percentiles, which a busy host
    hardly reaches."""
    low, c_low = (statistics.quantiles(times, n=10)[0] for times in (mine, c))
    return {
        "us": statistics.median(mine), "c_us": statistics.median(c), "low_us": low,
        "c_low_us": c_low, "min_us": min(mine), "c_min_us": min(c), "ratio": low / c_low,
        "min_ratio": min(mine) / min(c), "aim": AIMS[what],
    }  # fmt: skip


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ahead of all other processes, where that is permitted: each waits for the kernel's threads
    several times, and would then wait for its turn as well.
    """
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        print("not permitted to go ahead of other processes: on a busy host this is too much")
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


def main(rounds: int) -> dict[str, Row]:
    with undisturbed():
        found = measure(rounds)
    print("\nto the first exit, microseconds: median, tenth percentile, minimum")
    for what, one in found.items():
        met = "met" if one["ratio"] <= one["aim"] else "missed"
        print(
            f"{what:8} ours {one['us']:8.1f} {one['low_us']:8.1f} {one['min_us']:8.1f}   "
            f"C {one['c_us']:8.1f} {one['c_low_us']:8.1f} {one['c_min_us']:8.1f}   ratio "
            f"{one['ratio']:.2f} (minima {one['min_ratio']:.2f}), aim {one['aim']:.0f}: {met}"
        )
    return found
