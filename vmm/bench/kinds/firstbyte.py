"""From the program's execution to the first byte of a tiny guest; and what one exit costs."""

from __future__ import annotations

from typing import Any

from vmm.bench import guests
from vmm.bench.kinds.kind import Kind, Metric, Sample, Setup
from vmm.bench.tables import Table


class FirstByte(Kind):
    """The guest's first instructions write to the serial port."""

    title = "exec to the guest's first serial byte"

    def read(self, table: Table) -> None:
        """It has no keys."""

    def metric(self, name: str, options: Any) -> Metric:
        """`first_byte`."""
        return Metric("ms")

    def run(self, setup: Setup) -> Sample:
        """Until that byte has been read here."""
        with setup.start(guests.write_byte_guest(setup.folder / "byte.elf"), {}) as trial:
            taken = trial.until(guests.FIRST) - trial.started
        return Sample({"first_byte": taken * 1000})


class ExitCost(Kind):
    """One read of the serial port's line status: an exit to the VMM and back."""

    title = "one read of the serial port's line status register"

    def read(self, table: Table) -> int:
        """`reads`: how many in a run."""
        return int(table.number("reads", 100_000, 1, 1 << 31))

    def metric(self, name: str, options: Any) -> Metric:
        """`lsr_read`."""
        return Metric("us")

    def run(self, setup: Setup) -> Sample:
        """From the byte before the reads to the one behind."""
        guest = guests.write_byte_guest(setup.folder / "reads.elf", setup.options)
        with setup.start(guest, {}) as trial:
            first = trial.until(guests.FIRST)
            last = trial.until(guests.LAST)
        return Sample({"lsr_read": (last - first) * 1e6 / setup.options})


class Prefault(Kind):
    """How fast guest RAM is given its pages before the guest runs."""

    title = "prefault of guest RAM"

    def read(self, table: Table) -> None:
        """It has no keys; a contender's `prefault` has the words for {prefault}."""

    def metric(self, name: str, options: Any) -> Metric:
        """`rate`, and the two times that it is made of."""
        return Metric("GiB/s", "higher") if name == "rate" else Metric("ms")

    def run(self, setup: Setup) -> Sample:
        """One start with it and one without: RAM by the difference."""
        guest = guests.write_byte_guest(setup.folder / "byte.elf")
        taken = {}
        for way in ("off", "on"):
            with setup.start(guest, {"prefault": way}) as trial:
                taken[way] = trial.until(guests.FIRST) - trial.started
        values = {f"first_byte_{way}": seconds * 1000 for way, seconds in taken.items()}
        if taken["on"] > taken["off"]:
            values["rate"] = setup.memory / (taken["on"] - taken["off"]) / (1 << 30)
        return Sample(values)
