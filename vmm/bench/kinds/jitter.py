"""How late a guest's own timer is: its local APIC's, armed again and again by a halted guest."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from vmm.bench import guests
from vmm.bench.kinds.kind import Kind, Metric, Sample, Setup, histogram
from vmm.bench.tables import Table
from vmm.bench.trial import Trial, TrialError

LINE = re.compile(rb"[0-9a-f]{8}")
# Cycles between the two bytes by which the TSC's speed is found: 0.1 s of 2 GHz.
SPIN = 200_000_000
# KVM learns how much earlier it must arm the host's timer.
WARMUP = 10


@dataclass(frozen=True)
class Timer:
    """How often, and for how many us."""

    count: int
    period: int


class Jitter(Kind):
    """Lateness is told against the earliest hundredth of the same run: no clocks are compared."""

    title = "lateness of a halted guest's timer"

    def read(self, table: Table) -> Timer:
        """`count` times of `period_us`."""
        return Timer(
            int(table.number("count", 300, 10, 100_000)),
            int(table.number("period_us", 1000, 20, 1_000_000)),
        )

    def metric(self, name: str, options: Any) -> Metric:
        """`p50`, `p99` and `worst`."""
        return Metric("us")

    def run(self, setup: Setup) -> Sample:
        """The guest tells cycles from arming to its handler; the first times are warm-up."""
        timer = setup.options
        guest = guests.write_timer_guest(
            setup.folder / "timer.elf", timer.count + WARMUP, timer.period * 1000, SPIN
        )
        with setup.start(guest, {}) as trial:
            cycles_per_us = SPIN / (spin_seconds(trial) * 1e6)
            trial.until(guests.LAST)
            found = LINE.findall(bytes(trial.text))[WARMUP:]
        if len(found) != timer.count:
            raise TrialError(f"the guest told {len(found)} times of {timer.count}")
        return sample([int(line, 16) / cycles_per_us for line in found])


def spin_seconds(trial: Trial) -> float:
    """How long the guest's loop took between its two bytes."""
    return -(trial.until(guests.FIRST) - trial.until(b"="))


def sample(times: list[float]) -> Sample:
    """Figures and histogram of times in us."""
    earliest = sorted(times)[len(times) // 100]
    late = sorted(max(one - earliest, 0.0) for one in times)
    values = {
        "p50": late[len(late) // 2],
        "p99": late[min(len(late) * 99 // 100, len(late) - 1)],
        "worst": late[-1],
    }
    return Sample(values, {"late": histogram(late)})
