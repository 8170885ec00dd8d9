"""What several vCPUs stop for in the same moment: gdb hears of one after the other."""

from __future__ import annotations

import pytest

from vmm.debug.gdb.resume import orders_of
from vmm.debug.gdb.target import HARDWARE, GdbTarget
from vmm.debug.stop import Stop


class FakeCpu:
    def __init__(self, index: int) -> None:
        self.index = index
        self.address = 0x1000
        self.regs = type("Regs", (), {"rip": 0x1000})()


class FakePoint:
    kind = "hardware"
    is_watch = False

    def __init__(self, address: int) -> None:
        self.address = address

    def remove(self) -> None:
        self.address = -1


class FakePoints:
    def add(self, address: int, *rest: object) -> FakePoint:
        return FakePoint(address)


class FakeControl:
    """Both vCPUs hit at once, then nothing happens."""

    outcome = None

    def __init__(self) -> None:
        self.runs = 0
        self.also: list[Stop] = []
        self.point: object = None

    def run(self, *arguments: object, **options: object) -> Stop:
        self.runs += 1
        self.also = [Stop("breakpoint", 1, where=self.point)] if self.runs == 1 else []
        return Stop("breakpoint", 0, where=self.point) if self.runs == 1 else Stop("paused")


@pytest.fixture
def target():
    made = GdbTarget([FakeCpu(0), FakeCpu(1)], None, FakePoints(), FakeControl())  # type: ignore[arg-type,list-item]
    made.insert(HARDWARE, 0x1000, 1)
    (made.control.point,) = made._set.values()  # type: ignore[attr-defined]
    return made


def go(target: GdbTarget) -> tuple[str, int]:
    found = target.run(orders_of(b"c", 2), lambda: False)
    return found.kind, found.cpu


def test_the_second_is_told_without_running(target):
    assert go(target) == ("breakpoint", 0)
    assert go(target) == ("breakpoint", 1)
    assert target.control.runs == 1
    assert go(target) == ("paused", 0)


def test_one_whose_breakpoint_is_gone_is_not_told(target):
    go(target)
    target.remove(HARDWARE, 0x1000, 1)
    assert go(target) == ("paused", 0)


def test_one_that_has_been_moved_is_not_told(target):
    go(target)
    target.cpus[1].address = 0x2000  # type: ignore[misc]
    assert go(target) == ("paused", 0)


def test_where_a_segment_hides_the_address_gdb_hears_of_no_breakpoint(target):
    target.cpus[0].regs.rip = 0
    found = target.run(orders_of(b"c", 2), lambda: False)
    assert (found.kind, found.where) == ("breakpoint", None)
