"""How slow this machine is, measured once, and what follows for the patience of every test.

A test that waits says how long that may take on the machine on which a whole run takes about 20
minutes; patience() makes it longer where a fixed piece of work takes longer. Nothing is ever
shorter than it says. Measured by the clock, not by processor time, so that a machine with other
work to do counts as slow. Worker processes and labs get the result by the environment: the
emulated processor of a lab is slow everywhere, and what is waited for there allows for it.
"""

from __future__ import annotations

import os
import statistics
import time

VARIABLE = "VLLMD_TEST_SLOWNESS"
# One round on the machine of reference.
REFERENCE_SECONDS = 0.042
ROUNDS = 7
STEPS = 400_000
# A machine slower than this has another problem, which must not take hours to show.
MOST = 8.0


def work() -> int:
    """The fixed piece of work."""
    total = 0
    for number in range(STEPS):
        total = (total * 31 + number) & 0xFFFFFFFF
    return total


def measure() -> float:
    """How many times slower than the machine of reference this one is; 1.0 when it is not."""
    taken = []
    for _ in range(ROUNDS):
        started = time.monotonic()
        work()
        taken.append(time.monotonic() - started)
    return limited(statistics.median(taken) / REFERENCE_SECONDS)


def limited(factor: float) -> float:
    return round(min(max(factor, 1.0), MOST), 2)


def slowness() -> float:
    """As measured, or as the variable says; measured at most once, here and in all children."""
    if VARIABLE not in os.environ:
        os.environ[VARIABLE] = str(measure())
    return limited(float(os.environ[VARIABLE]))


def patience(seconds: float) -> float:
    """So long to wait where the machine of reference gets ``seconds``."""
    return seconds * slowness()
