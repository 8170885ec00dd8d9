"""A passed-through function that two vCPUs change while the control thread looks at it."""

from __future__ import annotations

import errno
import sys
import threading
import time

import pytest

from devices.pci.root import PciRoot
from devices.vfio.passthrough import PassthroughFunction
from devices.vfio.peers import PeerToPeer
from tests.support.log_lines import log_lines
from tests.unit.devices.vfio.test_passthrough import (
    ADDRESS,
    DATA,
    HOST,
    MSI,
    MSIX,
    FakeDevice,
)
from vmm._native.kvm.bus import Bus
from vmm._native.vfio import ioctls as vfio
from vmm.irq import IrqRouter
from vmm.vm import DeviceSlots

SECONDS = 1.5
WINDOW = (0xE0000000, 0x1000000)
HOME, ELSEWHERE = 0xE0000000, 0xE0100000
TABLE = 0x2000
COMMAND, BAR0 = 4, 0x10


class Mapping:
    def __init__(self, size: int) -> None:
        self.address, self.size = 0x7F0000000000, size

    def close(self) -> None: ...


class MappedDevice(FakeDevice):
    """As the base, its BAR mapped but for the table's page."""

    def get_region_info(self, index: int):
        _, size, offset, areas, _ = super().get_region_info(index)
        return vfio.REGION_MMAP if index == 0 else 0, size, offset, areas, True

    def map(self, offset: int, size: int) -> Mapping:
        return Mapping(size)


class StrictKvm:
    """Refuses what KVM refuses: a line or a slot twice, and one that is not there."""

    def __init__(self) -> None:
        self.lines: set[int] = set()
        self.slots: dict[int, int] = {}

    def irqfd(self, fd: int, gsi: int, assign: bool = True, resample_fd: int = -1) -> None:
        if assign == (fd in self.lines):
            raise OSError(errno.EBUSY if assign else errno.ENOENT, "KVM_IRQFD")
        time.sleep(0)
        (self.lines.add if assign else self.lines.remove)(fd)

    def set_gsi_routing(self, routes) -> None:
        time.sleep(0)

    def set_user_memory_region(self, slot: int, gpa: int, size: int, hva: int) -> None:
        if bool(size) == (slot in self.slots) or (size and gpa in self.slots.values()):
            raise OSError(errno.EEXIST, "KVM_SET_USER_MEMORY_REGION")
        time.sleep(0)
        if size:
            self.slots[slot] = gpa
        else:
            del self.slots[slot]


class Peers(PeerToPeer):
    """Shares each part of a BAR once, and never with luck."""

    def __init__(self) -> None:
        super().__init__(None)
        self.now: set[int] = set()

    def share(self, name: str, gpa: int, size: int, hva: int) -> bool:
        assert gpa not in self.now
        self._failed[name] = "a reason"
        self.now.add(gpa)
        self._failed.pop(name)
        return True

    def withdraw(self, gpa: int, size: int) -> None:
        self.now.remove(gpa)


@pytest.fixture
def rig(monkeypatch):
    device, kvm = MappedDevice(), StrictKvm()
    irq = IrqRouter(kvm)
    mmio = Bus("MMIO")
    root = PciRoot(mmio, [WINDOW], Bus("ports"), (0xC000, 0x1000))
    function = PassthroughFunction(HOST, device, irq, 7, DeviceSlots(kvm, 2), Peers())
    # The native target wants a real file of VFIO's.
    monkeypatch.setattr(function, "bar_target", lambda bar: Shifted(function))
    root.add(1, function)
    function.bars[0].value = HOME
    function.enable()
    yield root, function, mmio, kvm
    function.close()
    irq.close()


class Shifted:
    """The BAR, of which the function serves the table."""

    def __init__(self, function: PassthroughFunction) -> None:
        self._function = function

    def read(self, offset: int, size: int) -> int:
        return self._function.read(offset, size) if offset >= TABLE else 0

    def write(self, offset: int, value: int, size: int) -> None:
        if offset >= TABLE:
            self._function.write(offset, value, size)


def test_everything_at_once(rig):
    root, function, mmio, kvm = rig
    failed: list[BaseException] = []
    done = threading.Event()

    def put(register: int, value: int, size: int = 4) -> None:
        root.config_write(0, 1, 0, register, value, size)

    def move() -> None:
        for command in (0, 2):
            put(COMMAND, command, 2)
        for base in (ELSEWHERE, HOME):
            put(BAR0, base)
            put(BAR0 + 4, 0)

    def switch() -> None:
        for control in (0x8000, 0xC000, 0x8000, 0):
            put(MSIX + 2, control, 2)
        put(MSI + 4, ADDRESS)
        for control in (1, 0):
            put(MSI + 2, control, 2)

    def program() -> None:
        for base in (HOME, ELSEWHERE):
            for offset, value in ((0, ADDRESS), (4, 0), (8, DATA), (12, 0), (12, 1)):
                mmio.write(base + TABLE + offset, value, 4)

    def look() -> None:
        function.status()

    def again(work) -> None:
        try:
            while not done.is_set():
                work()
        except BaseException as error:
            failed.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=again, args=(w,)) for w in (move, switch, program, look)]
    with log_lines() as lines:
        for thread in threads:
            thread.start()
        time.sleep(SECONDS)
        done.set()
        for thread in threads:
            thread.join()
    sys.setswitchinterval(before)
    assert failed == []
    assert lines.records == []
    put(MSIX + 2, 0, 2)
    put(MSI + 2, 0, 2)
    put(COMMAND, 2, 2)
    put(BAR0, ELSEWHERE)
    assert sorted(kvm.slots.values()) == [ELSEWHERE, ELSEWHERE + 0x3000]
    assert function._peers.now == set(kvm.slots.values())
    assert len(kvm.lines) == 1  # INTx
    assert function.bars[0].mapped == ELSEWHERE
