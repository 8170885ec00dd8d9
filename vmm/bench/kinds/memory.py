"""What a VMM takes: its memory beside the guest's RAM, alone and with many guests; wake-ups."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

from vmm.bench import guests, procfs
from vmm.bench.kinds.kind import Kind, Metric, Sample, Setup
from vmm.bench.tables import Table


class Memory(Kind):
    """One guest that halts for ever."""

    title = "memory of the VMM, guest RAM not counted"

    def read(self, table: Table) -> float:
        """`settle`: s between the guest's last byte and the look."""
        return float(table.number("settle", 0.2, 0.0, 3600.0, float))

    def metric(self, name: str, options: Any) -> Metric:
        """`pss`, `private`, `threads`."""
        return Metric("" if name == "threads" else "MiB")

    def run(self, setup: Setup) -> Sample:
        """Proportional set size by smaps, mappings of 32 MiB and more left out."""
        with setup.start(guests.write_byte_guest(setup.folder / "byte.elf"), {}) as trial:
            trial.until(guests.LAST)
            time.sleep(setup.options)
            found = procfs.memory_kib(trial.pid)
            count = procfs.threads(trial.pid)
        return Sample({key: kib / 1024 for key, kib in found.items()} | {"threads": count})


class Density(Kind):
    """Many idle guests at once."""

    title = "idle guests side by side, figures of one guest"

    def read(self, table: Table) -> tuple[int, float]:
        """`guests`: how many; `seconds`: how long they are watched."""
        count = int(table.number("guests", 8, 1, 10_000))
        return count, float(table.number("seconds", 2.0, 0.1, 3600.0, float))

    def metric(self, name: str, options: Any) -> Metric:
        """`pss` and `wakeups`, of one guest."""
        return Metric({"pss": "MiB", "wakeups": "1/s"}[name])

    def run(self, setup: Setup) -> Sample:
        """Context switches of all threads while nobody has anything to do, and memory then."""
        count, seconds = setup.options
        guest = guests.write_byte_guest(setup.folder / "byte.elf")
        with ExitStack() as stack:
            trials = [stack.enter_context(setup.start(guest, {})) for _ in range(count)]
            for trial in trials:
                trial.until(guests.LAST)
            time.sleep(min(seconds, 0.5))
            before, began = sum(procfs.switches(trial.pid) for trial in trials), time.monotonic()
            time.sleep(seconds)
            after, ended = sum(procfs.switches(trial.pid) for trial in trials), time.monotonic()
            pss = sum(procfs.memory_kib(trial.pid)["pss"] for trial in trials)
        wakeups = (after - before) / (ended - began) / count
        return Sample({"pss": pss / 1024 / count, "wakeups": wakeups})
