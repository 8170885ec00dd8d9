"""Each call to a device fails once, or it is pulled out there: an error, never a loop or a leak."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest

from devices.pci.root import PciRoot
from devices.pci.windows import BarWindows
from devices.vfio import attach
from devices.vfio.passthrough import PassthroughFunction
from devices.vfio.peers import PeerToPeer
from tests.unit.devices.vfio.test_passthrough import (
    ADDRESS,
    DATA,
    HOST,
    MSI,
    MSIX,
    FakeDevice,
    FakeVm,
)
from vmm._native.kvm.bus import Bus
from vmm.errors import HostError, VmmError
from vmm.irq import IrqRouter

ONES = {size: (1 << 8 * size) - 1 for size in (1, 2, 4, 8)}
CALLS_MAX = 2000
NAMES = (
    "get_info", "get_region_info", "get_irq_count", "reset", "read", "write", "trigger_eventfds",
    "unmask_eventfd", "disable_irqs",
)  # fmt: skip


class Failing(FakeDevice):
    """The call number ``at`` fails with ``code``; from there on, if ``gone``, reads are ones."""

    def __init__(self, at: int = -1, code: int = errno.EIO, gone: bool = False) -> None:
        super().__init__()
        self.at, self.code, self.pulled_out = at, code, gone
        self.calls = 0

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in NAMES:
            return found

        def call(*arguments: int) -> Any:
            self.calls += 1
            assert self.calls < CALLS_MAX, "it asks without end"
            if self.pulled_out and 0 <= self.at < self.calls:
                # What Linux does: reads give ones, writes are dropped, ioctls fail.
                if name == "read":
                    return ONES[arguments[1]]
                if name == "write":
                    return None
                raise OSError(errno.ENODEV, name)
            if self.calls == self.at + 1:
                raise OSError(self.code, name)
            return found(*arguments)

        return call


def drive(function: PassthroughFunction) -> None:
    """What a driver does: sizes BARs, messages of either kind, and the line again."""
    for offset in (0x10, 0x18, 0x30):
        function.config_write(offset, 0xFFFFFFFF, 4)
        function.config_read(offset, 4)
    function.config_write(0x04, 0x2 | 0x4, 2)
    for entry in range(2):
        for part, value in enumerate((ADDRESS & 0xFFFFFFFF, 0, DATA, 0)):
            function.write(0x2000 + 16 * entry + 4 * part, value, 4)
    function.config_write(MSIX + 2, 0x8000, 2)
    function.config_write(MSIX + 2, 0, 2)
    function.config_write(MSI + 4, ADDRESS, 4)
    function.config_write(MSI + 12, DATA, 2)
    function.config_write(MSI + 2, 0x11, 2)
    function.config_write(MSI + 2, 0, 2)
    function.config_read(0, 4)
    function.status()


def life(device: Failing) -> tuple[str, Failing]:
    """All of a device's life, to the end that always comes: what refused it, if anything did."""
    irq = IrqRouter(FakeVm())
    try:
        function = PassthroughFunction(HOST, device, irq, 7, None, PeerToPeer(None))
        try:
            function.interrupts.enable_intx()
            drive(function)
            device.at = -1
            if not device.pulled_out:
                drive(function)  # it is well again, and so is what it does
                assert function.interrupts.kind == "intx"
        finally:
            function.close()
    except (VmmError, OSError) as error:
        return str(error), device
    finally:
        irq.close()
    return "", device


def test_a_device_that_fails_when_it_is_switched_on(monkeypatch):
    """It is named; close() then gives it back."""
    device = Failing()
    domain = SimpleNamespace(ranges=[], open_device=lambda host, memory: device, close=lambda: None)
    monkeypatch.setattr(attach, "open_domain", lambda *arguments: domain)
    monkeypatch.setattr(attach, "PeerToPeer", lambda *arguments: PeerToPeer(None))
    irq = IrqRouter(FakeVm())
    windows = BarWindows((1 << 40, 1 << 38))
    pci = PciRoot(Bus("MMIO", None), windows.memory, Bus("ports", None), windows.ports)
    passthrough = attach.Passthrough(None, irq, None, None, pci, windows)
    enable = PassthroughFunction.enable

    def fail(function: PassthroughFunction) -> None:
        device.at = device.calls
        enable(function)

    monkeypatch.setattr(PassthroughFunction, "enable", fail)
    with pytest.raises(HostError, match=f"{HOST.bdf} fails: .*see the kernel's log"):
        passthrough.attach([HOST], None, "off", 5, lambda *arguments: None)
    passthrough.close()
    irq.close()
    assert device.asked[-1] == ("close",)


def test_nothing_fails():
    told, device = life(Failing())
    assert told == ""
    assert 60 < device.calls < 500


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOMEM, errno.ENODEV])
def test_each_call_fails_once(code):
    calls = life(Failing())[1].calls
    refused = [bool(life(Failing(at, code))[0]) for at in range(calls)]
    assert 10 < sum(refused) < calls


def test_it_is_pulled_out_at_each_call():
    calls = life(Failing())[1].calls
    told = [life(Failing(at, gone=True))[0] for at in range(calls)]
    assert any("does not answer" in text for text in told)
    assert not told[-1]
