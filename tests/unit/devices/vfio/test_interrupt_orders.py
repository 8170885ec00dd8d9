"""The line and messages of a device in every order of events: none is lost, none comes unasked.

The kernel's part is played by what VFIO and KVM do with eventfds: VFIO masks a line when it tells
of it, and lets the next one through when the eventfd for unmasking is written, also before it had
it; KVM holds the line until the guest's end of interrupt, and then writes that eventfd.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterator

import pytest

from devices.vfio.interrupts import MSI_ID, MSIX_ID, Interrupts, Overlay
from tests.support.process import open_descriptors
from vmm._native.vfio import ioctls as vfio
from vmm.irq import IrqRouter

GSI, MSI, MSIX = 7, 0x60, 0x50
ADDRESS, DATA = 0xFEE01000, 0x41
EVENTS = ("raise", "vfio", "kvm", "serve", "messages", "line")


def take(fd: int) -> bool:
    """Whether the eventfd was written; it is read."""
    try:
        os.eventfd_read(fd)
    except BlockingIOError:
        return False
    return True


class Kernel:
    """VFIO and KVM with one device; ``at_call`` is run before and after each of their calls."""

    fd = 99

    def __init__(self) -> None:
        self.raised = False  # the device's interrupt condition, which its driver clears
        self.edge = False  # a message that the device owes
        self.on: int | None = None
        self.masked = False
        self.triggers: list[int] = []
        self.unmask_fd = -1
        self.lines: dict[int, int] = {}  # irqfd: eventfd of the end of interrupt, -1 without
        self.level = False
        self.raises = self.messages = self.lines_served = self.unasked = 0
        self.refuses: set[str] = set()
        self.calls = 0
        self.at_call: Callable[[int], None] = lambda number: None

    def _enter(self, name: str) -> None:
        self.at_call(self.calls)
        self.calls += 1
        if name in self.refuses:
            raise OSError(errno.ENOSPC, name)

    # --- what the VMM calls ---

    def get_irq_count(self, index: int) -> int:
        return {vfio.INTX: 1, vfio.MSI: 1, vfio.MSIX: 2}[index]

    def trigger_eventfds(self, index: int, fds: list[int]) -> int:
        self._enter("trigger")
        if self.on is not None and self.on != index:
            raise OSError(errno.EINVAL, "another kind is on")
        self.on, self.triggers, self.masked = index, list(fds), False
        self.at_call(self.calls)
        return 0

    def unmask_eventfd(self, index: int, fd: int) -> None:
        self._enter("unmask")
        assert self.on == index == vfio.INTX
        self.unmask_fd = fd
        self.at_call(self.calls)

    def disable_irqs(self, index: int) -> None:
        self._enter("disable")
        assert self.on == index
        self.on, self.triggers, self.unmask_fd, self.masked = None, [], -1, False
        self.at_call(self.calls)

    def irqfd(self, fd: int, gsi: int, assign: bool = True, resample_fd: int = -1) -> None:
        self._enter("irqfd")
        if assign:
            assert fd not in self.lines
            self.lines[fd] = resample_fd
        elif self.lines.pop(fd) >= 0:
            self.level = False
        self.at_call(self.calls)

    def set_gsi_routing(self, routes) -> None:
        pass

    # --- what happens meanwhile ---

    def happen(self, event: str) -> None:
        getattr(self, event)()

    def raise_(self) -> None:
        self.raised = self.edge = True
        self.raises += 1

    def vfio(self) -> None:
        """The host's interrupt, and what was asked for by the eventfd for unmasking."""
        if self.unmask_fd >= 0 and take(self.unmask_fd):
            self.masked = False
        if self.on == vfio.INTX and self.raised and not self.masked:
            self.masked = True
            os.eventfd_write(self.triggers[0], 1)
        elif self.on in (vfio.MSI, vfio.MSIX) and self.edge:
            os.eventfd_write(self.triggers[0], 1)
            self.edge = False

    def kvm(self) -> None:
        """Whatever eventfd was written becomes a level or a message."""
        for fd, resample in self.lines.items():
            if not take(fd):
                continue
            if resample >= 0:
                self.level = True
            else:
                self.messages += 1
                self.unasked += self.messages > self.raises
                self.raised = False

    def serve(self) -> None:
        """The guest's handler of the line: the device is asked and served, then the end of it."""
        if self.level:
            self.lines_served += 1
            self.unasked += not self.raised
            self.raised = self.edge = self.level = False
            for resample in self.lines.values():
                if resample >= 0:
                    os.eventfd_write(resample, 1)

    def settle(self) -> None:
        for _ in range(6):
            self.vfio()
            self.kvm()
            self.serve()


class Rig:
    def __init__(self, kind: str) -> None:
        self.kernel = Kernel()
        self.kind = kind
        self.router = IrqRouter(self.kernel)
        config = bytearray(256)
        config[MSI + 2 : MSI + 4] = (0x80).to_bytes(2, "little")
        config[MSIX + 4] = 2
        self.interrupts = Interrupts(
            "device", self.kernel, self.router, GSI, Overlay(256), {MSI_ID: MSI, MSIX_ID: MSIX},
            lambda at, size: int.from_bytes(config[at : at + size], "little"),
        )  # fmt: skip

    def messages(self) -> None:
        """As a driver does it: where they go, then on."""
        write = self.interrupts.write
        if self.kind == "msi":
            write(MSI + 4, ADDRESS, 4)
            write(MSI + 12, DATA, 2)
            write(MSI + 2, 1, 2)
            return
        write(MSIX + 2, 0x8000, 2)
        for offset, value in ((0, ADDRESS), (4, 0), (8, DATA), (12, 0)):
            self.interrupts.table_write(offset, value, 4)

    def line(self) -> None:
        self.interrupts.write(MSI + 2 if self.kind == "msi" else MSIX + 2, 0, 2)

    def do(self, event: str) -> None:
        if event in ("messages", "line"):
            getattr(self, event)()
        else:
            self.kernel.happen("raise_" if event == "raise" else event)

    def close(self) -> None:
        self.interrupts.close()
        self.router.close()


@pytest.fixture(params=["msi", "msix"])
def make(request) -> Iterator[Callable[[], Rig]]:
    made: list[Rig] = []

    def one() -> Rig:
        while made:
            made.pop().close()
        made.append(Rig(request.param))
        made[0].interrupts.enable_intx()
        return made[0]

    yield one
    for rig in made:
        rig.close()


def works_as_ever(rig: Rig) -> None:
    """Whatever was before: by the line, then by messages, each interrupt arrives, once."""
    kernel = rig.kernel
    kernel.settle()
    for way in ("line", "messages", "line"):
        rig.do(way)
        kernel.settle()
        kernel.raised = kernel.edge = False
        kernel.settle()
        before = kernel.messages, kernel.lines_served
        for _ in range(3):
            kernel.raise_()
            kernel.settle()
            assert not kernel.raised
        arrived = kernel.messages - before[0], kernel.lines_served - before[1]
        assert arrived == ((3, 0) if way == "messages" else (0, 3))


@pytest.mark.parametrize("length", [4, pytest.param(6, marks=pytest.mark.full)])
@pytest.mark.timeout(600)
def test_every_order(make, length):
    for order in itertools.product(EVENTS, repeat=length):
        rig = make()
        for event in order:
            rig.do(event)
        rig.kernel.settle()
        # By the line it is always served. A message that the host got while they changed over may
        # be lost, as on hardware; one that nobody asked for may not come.
        if rig.kernel.on == vfio.INTX:
            assert not rig.kernel.raised, order
        assert rig.kernel.unasked == 0, order
        works_as_ever(rig)


@pytest.mark.parametrize("events", [("raise", "vfio", "kvm", "serve"), ("raise", "vfio", "kvm")])
@pytest.mark.parametrize("way", [("messages",), ("messages", "line")], ids=len)
def test_at_each_call_of_a_change(make, way, events):
    """Another processor serves the device while one changes its kind."""
    rig = make()
    for change in way:
        rig.do(change)
    for number in range(rig.kernel.calls + 1):
        rig = make()
        begin = rig.kernel.calls

        def happens(call: int, rig: Rig = rig, at: int = begin + number) -> None:
            if call == at and not rig.kernel.raised:
                for event in events:
                    rig.do(event)

        rig.kernel.at_call = happens
        for change in way:
            rig.do(change)
        rig.kernel.at_call = lambda call: None
        rig.kernel.settle()
        if way[-1] == "line":
            assert not rig.kernel.raised, number
        works_as_ever(rig)


def test_a_message_that_came_too_late_does_not_come_when_they_are_on_again(make):
    rig = make()
    rig.messages()

    def last(call: int) -> None:
        rig.do("raise")
        rig.do("vfio")
        rig.kernel.at_call = lambda call: None

    # The first call of the change masks the vector; the device's message comes right behind it.
    begin = rig.kernel.calls
    rig.kernel.at_call = lambda call: last(call) if call == begin + 1 else None
    rig.line()
    rig.kernel.settle()
    assert rig.kernel.lines_served == 1
    rig.messages()
    rig.kernel.settle()
    assert rig.kernel.messages == 0


@pytest.mark.parametrize("call", ["trigger", "unmask", "irqfd"])
def test_a_line_that_is_refused_can_be_left_and_asked_for_again(make, call):
    rig = make()
    rig.messages()
    files = len(open_descriptors())
    for _ in range(3):
        rig.kernel.refuses = {call}
        with pytest.raises(OSError, match=call):
            rig.interrupts.enable_intx()
        rig.kernel.refuses = set()
    assert len(open_descriptors()) == files
    works_as_ever(rig)
