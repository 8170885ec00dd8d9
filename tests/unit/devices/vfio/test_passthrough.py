"""A passed-through function over a fake device: what the guest sees, and what VFIO is asked for."""

from __future__ import annotations

import os
import struct

import pytest

from devices.vfio import gpudirect
from devices.vfio.interrupts import Overlay
from devices.vfio.passthrough import PassthroughFunction
from devices.vfio.peers import PeerToPeer
from vmm._native.vfio import ioctls as vfio
from vmm.errors import HostError
from vmm.host.pci import HostDevice
from vmm.irq import IrqRouter

MSIX, MSI, PCIE = 0x50, 0x60, 0x70
BAR_BYTES = 0x4000
PORTS = 0x20
ROM_BYTES = 0x10000
VECTORS = 4
SRIOV, AER = 0x100, 0x140
ADDRESS, DATA = 0xFEE01000, 0x4041


HOST = HostDevice("0000:01:00.0", 10, "mlx5_vfio_pci")


class FakeDevice:
    """Configuration space with one 64-bit BAR, MSI, MSI-X and two extended capabilities."""

    fd = 99

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.gone = False
        self.vectors = VECTORS  # what the host gives at once
        self.reset_error: OSError | None = None
        self.config = bytearray(4096)
        put = self.put
        put(0x00, "<HH", 0x10DE, 0x2330)
        put(0x06, "<H", 0x10)
        put(0x0E, "<B", 0x80)  # multifunction
        put(0x34, "<B", MSIX)
        put(0x3D, "<B", 1)
        put(MSIX, "<BBHII", 0x11, MSI, 0x8000 | VECTORS - 1, 0x2000, 0x3000)
        put(MSI, "<BBHIIH", 0x05, PCIE, 0x0180 | 2 << 1 | 1, 0xFEE00000, 0, 0x30)
        put(PCIE, "<BB", 0x10, 0)
        put(SRIOV, "<I", 0x0010 | 1 << 16 | AER << 20)
        put(AER, "<I", 0x0001 | 1 << 16)

    def put(self, offset: int, form: str, *values: int) -> None:
        struct.pack_into(form, self.config, offset, *values)

    def get_info(self) -> tuple[int, int, int]:
        return vfio.FLAG_PCI | vfio.FLAG_RESET, 9, 5

    def get_region_info(self, index: int):
        sizes = {0: BAR_BYTES, 2: PORTS, vfio.ROM_REGION: ROM_BYTES, vfio.CONFIG_REGION: 4096}
        size = sizes.get(index, 0)
        return 0, size, 0, None, False

    def get_irq_count(self, index: int) -> int:
        return {vfio.INTX: 1, vfio.MSI: 4, vfio.MSIX: VECTORS, vfio.REQ: 1}.get(index, 0)

    def reset(self) -> None:
        self.asked.append(("reset",))
        if self.reset_error:
            raise self.reset_error

    def read(self, offset: int, size: int) -> int:
        if self.gone:
            raise OSError(5, "gone")
        return int.from_bytes(self.config[offset : offset + size], "little")

    def write(self, offset: int, value: int, size: int) -> None:
        if self.gone:
            raise OSError(5, "gone")
        if offset == 0x10 and value == 0xFFFFFFFF:
            value = -BAR_BYTES & 0xFFFFFFFF | 0xC
        if offset == 0x18 and value == 0xFFFFFFFF:
            value = -PORTS & 0xFFFFFFFF | 1
        self.config[offset : offset + size] = value.to_bytes(size, "little")

    def trigger_eventfds(self, index: int, fds: list[int]) -> int:
        self.asked.append(("trigger", index, len(fds)))
        return self.vectors if index == vfio.MSIX and len(fds) > self.vectors else 0

    def unmask_eventfd(self, index: int, fd: int) -> None:
        self.asked.append(("unmask", index))

    def disable_irqs(self, index: int) -> None:
        self.asked.append(("disable", index))

    def close(self) -> None:
        self.asked.append(("close",))


class FakeVm:
    def __init__(self) -> None:
        self.routes: list[tuple[int, int, int, int]] = []
        self.assigned: set[int] = set()

    def irqfd(self, fd: int, gsi: int, assign: bool = True, resample_fd: int = -1) -> None:
        (self.assigned.add if assign else self.assigned.discard)(gsi)

    def set_gsi_routing(self, routes) -> None:
        self.routes = routes.messages()

    def reached(self) -> list[int]:
        """The data of the messages that something is connected to."""
        return sorted(data for gsi, _, _, data in self.routes if gsi in self.assigned)


@pytest.fixture
def made():
    device, vm = FakeDevice(), FakeVm()
    irq = IrqRouter(vm)
    peers = PeerToPeer(None)
    function = PassthroughFunction(HOST, device, irq, 7, None, peers)
    yield function, device, vm
    function.close()
    irq.close()


def test_what_the_guest_sees(made):
    function, device, _ = made
    assert device.asked[0] == ("reset",)
    assert function.config_read(0x00, 4) == 0x233010DE
    assert function.config_read(0x0E, 1) == 0  # a single function
    assert function.config_read(MSIX + 2, 2) == VECTORS - 1  # off, whatever the device says
    assert function.config_read(MSI + 2, 2) == 0x80 | 2 << 1  # 64 bit, four, off, no masking
    assert function.config_read(SRIOV, 4) == 1 << 16 | AER << 20  # hidden, its successor is there
    assert function.config_read(AER, 2) == 1
    assert function.hidden == ["SR-IOV"]
    assert function.status()["driver"] == "mlx5_vfio_pci"
    bar, ports, rom = function.bars
    assert (bar.size, bar.wide, bar.flags) == (BAR_BYTES, True, 0xC)
    assert (ports.size, ports.space, ports.index) == (PORTS, "ports", 2)
    assert (rom.size, rom.kind) == (ROM_BYTES, "expansion ROM")


def test_registers_of_ports_and_the_expansion_rom(made):
    function, device, _ = made
    function.config_write(0x18, 0xFFFFFFFF, 4)
    assert function.config_read(0x18, 4) == 0xFFFFFFE1
    function.config_write(0x18, 0xC125, 4)
    assert function.config_read(0x18, 4) == 0xC121
    function.config_write(0x30, 0xFFFFF800, 4)
    assert function.config_read(0x30, 4) == 0xFFFF0000
    function.config_write(0x30, 0xC0010001, 4)
    assert function.config_read(0x30, 4) == 0xC0010001
    ports, rom = function.bars[1:]
    assert (ports.answers(1), ports.answers(2)) == (True, False)
    assert (rom.answers(1), rom.answers(2)) == (False, True)
    function.config_write(0x30, 0xC0010000, 4)
    assert not rom.answers(2)
    assert device.config[0x30:0x34] == bytes(4)  # the device's own stays as it was


def test_writes_reach_the_device_but_for_ours(made):
    function, device, _ = made
    function.config_write(0x0C, 0x10, 1)
    assert device.config[0x0C] == 0x10
    function.config_write(0x3C, 11, 1)
    assert (function.config_read(0x3C, 1), device.config[0x3C]) == (11, 0)
    function.config_write(4, 6, 2)
    assert device.config[4] == 6
    assert function.bars[0].mapped is None  # no bus here


@pytest.fixture
def build():
    irq = IrqRouter(FakeVm())
    made: list[PassthroughFunction] = []

    def make(device: FakeDevice, clique: int) -> PassthroughFunction:
        peers = PeerToPeer(None)
        made.append(PassthroughFunction(HOST, device, irq, 7, None, peers, clique))
        return made[-1]

    yield make
    for function in made:
        function.close()
    irq.close()


def test_a_clique_is_told_at_the_end_of_the_chain(build):
    function = build(FakeDevice(), 5)
    assert function.config_read(PCIE + 1, 1) == 0xD4
    assert function.config_read(0xD4, 4) == 0x50080009
    assert function.config_read(0xD8, 4) == 5 << 19 | 0x5032
    function.config_write(0xD4, 0, 4)
    assert function.config_read(0xD4, 4) == 0x50080009
    assert function.status()["gpudirect_clique"] == 5


@pytest.mark.parametrize("taken", [0xD4, 0xDB])
def test_a_clique_is_not_told_where_the_device_has_something(build, taken):
    device = FakeDevice()
    device.put(taken, "<B", 1)
    function = build(device, 5)
    assert function.config_read(PCIE + 1, 1) == 0
    assert function.status()["gpudirect_clique"] is None


def test_gpus_behind_one_switch_share_a_clique():
    first, second = "/sys/devices/pci0000:00", "/sys/devices/pci0001:00"
    switch = "0000:00:01.0/0000:01:00.0"
    paths = {
        "0000:04:00.0": f"{first}/{switch}/0000:02:00.0/0000:04:00.0",
        "0000:05:00.0": f"{first}/{switch}/0000:02:01.0/0000:05:00.0",
        "0000:08:00.0": f"{first}/0000:00:03.0/0000:08:00.0",
        "0001:04:00.0": f"{second}/{switch}/0000:02:00.0/0001:04:00.0",
        "0001:05:00.0": f"{second}/{switch}/0000:02:01.0/0001:05:00.0",
    }
    assert gpudirect.automatic(paths) == {
        "0000:04:00.0": 0, "0000:05:00.0": 0, "0001:04:00.0": 1, "0001:05:00.0": 1,
    }  # fmt: skip


def test_only_nvidia_s_display_controllers_get_one(monkeypatch):
    kinds = {"gpu": (0x10DE, 0x0302), "audio": (0x10DE, 0x0403), "other": (0x1002, 0x0300)}
    monkeypatch.setattr(gpudirect, "identity", kinds.__getitem__)
    assert gpudirect.choose(3, list(kinds), False) == {"gpu": 3}
    assert gpudirect.choose("off", list(kinds), True) == {}
    assert gpudirect.choose("auto", list(kinds), True) == {}


def test_from_the_line_to_messages_and_back(made):
    """VFIO wants one kind off before the next one is on; all vectors are connected at once."""
    function, device, vm = made
    function.interrupts.enable_intx()
    assert device.asked[-2:] == [("trigger", vfio.INTX, 1), ("unmask", vfio.INTX)]
    assert vm.assigned == {7}
    function.config_write(MSIX + 2, 0x8000, 2)
    assert device.asked[-2:] == [("disable", vfio.INTX), ("trigger", vfio.MSIX, VECTORS)]
    for offset, value in ((0, ADDRESS), (4, 0), (8, DATA), (12, 0)):
        function.write(0x2000 + 16 + offset, value, 4)
    assert [(low, data) for _, low, _, data in vm.routes] == [(0xFEE01000, DATA)]
    assert function.read(0x2000 + 16 + 8, 4) == DATA
    assert function.config_read(MSIX + 2, 2) == 0x8000 | VECTORS - 1
    function.config_write(MSIX + 2, 0, 2)
    assert device.asked[-3:] == [
        ("disable", vfio.MSIX), ("trigger", vfio.INTX, 1), ("unmask", vfio.INTX),
    ]  # fmt: skip
    assert function.status()["interrupts"]["messages_used"] == ["msix"]


@pytest.mark.parametrize("control", [MSIX + 2, MSI + 2], ids=["msix", "msi"])
def test_a_line_is_held_only_while_it_is_used(made, control):
    """A device that raised its line before it changed over must not hold it for ever."""
    function, _, vm = made
    function.interrupts.enable_intx()
    line = function.interrupts._line
    assert 7 in vm.assigned
    os.eventfd_write(line.fd, 1)
    os.eventfd_write(line.resample_fd, 1)
    function.config_write(control, 0x8000 if control == MSIX + 2 else 1, 2)
    assert 7 not in vm.assigned
    # What was raised or acknowledged then is nothing that the line's next user should hear of.
    for fd in (line.fd, line.resample_fd):
        with pytest.raises(BlockingIOError):
            os.eventfd_read(fd)
    function.config_write(control, 0, 2)
    assert 7 in vm.assigned
    assert function.interrupts._line is line


def test_msi_with_two_vectors(made):
    function, device, vm = made
    function.config_write(MSI + 4, ADDRESS, 4)
    function.config_write(MSI + 8, 0, 4)
    function.config_write(MSI + 12, DATA, 2)
    function.config_write(MSI + 2, 1 << 4 | 1, 2)
    assert ("trigger", vfio.MSI, 2) in device.asked
    assert vm.reached() == [DATA & ~1, DATA & ~1 | 1]
    function.config_write(MSI + 12, 0x50, 2)  # moved while on
    assert vm.reached() == [0x50, 0x51]
    assert device.asked.count(("trigger", vfio.MSI, 2)) == 1
    function.config_write(MSI + 2, 0, 2)
    assert ("disable", vfio.MSI) in device.asked


def test_a_device_that_is_gone_reads_ones(made):
    function, device, _ = made
    device.gone = True
    assert function.config_read(0x00, 4) == 0xFFFFFFFF
    function.config_write(0x0C, 1, 1)
    function.config_write(4, 0, 2)


def attach(device: FakeDevice, irq: IrqRouter) -> PassthroughFunction:
    return PassthroughFunction(HOST, device, irq, 7, None, PeerToPeer(None))


def test_the_number_of_vectors_is_what_the_host_says_first(monkeypatch):
    said = {vfio.MSIX: iter([VECTORS, 0, 0]), vfio.MSI: iter([4, 4])}
    device, irq = FakeDevice(), IrqRouter(FakeVm())
    monkeypatch.setattr(device, "get_irq_count", lambda index: next(said.get(index, iter([0]))))
    function = PassthroughFunction(HOST, device, irq, 7, None, PeerToPeer(None))
    assert function.config_read(MSIX + 2, 2) == VECTORS - 1
    function.close()
    irq.close()


def test_fewer_vectors_than_the_table_has(made):
    """The host gives two of four: those are connected, and `status` says so."""
    function, device, _ = made
    device.vectors = 2
    function.config_write(MSIX + 2, 0x8000, 2)
    assert device.asked[-2:] == [("trigger", vfio.MSIX, VECTORS), ("trigger", vfio.MSIX, 2)]
    interrupts = function.status()["interrupts"]
    assert (interrupts["in_use"], interrupts["messages_connected"]) == ("msix", 2)
    assert (interrupts["msix"], function.config_read(MSIX + 2, 2)) == (VECTORS, 0x8000 | 3)


def test_a_failing_reset_is_told():
    device, irq = FakeDevice(), IrqRouter(FakeVm())
    device.reset_error = OSError(25, "no way")
    function = attach(device, irq)
    assert function.status()["reset"] == "failed: [Errno 25] no way"
    function.close()
    irq.close()


@pytest.mark.parametrize("register", [0x00, 0x10])
def test_a_device_that_does_not_answer_is_refused(register):
    """All of it reads as ones, or a BAR does: neither is a device to show to a guest."""
    device, irq = FakeDevice(), IrqRouter(FakeVm())
    read = device.read
    device.read = lambda offset, size: (
        (1 << 8 * size) - 1 if offset == register else read(offset, size)
    )
    with pytest.raises(HostError, match="0000:01:00.0 does not answer.*all ones"):
        attach(device, irq)
    irq.close()


def test_a_bar_of_a_size_that_cannot_be_is_refused():
    device, irq = FakeDevice(), IrqRouter(FakeVm())
    device.get_region_info = lambda index: (0, 3000 if index == 0 else 4096, 0, None, False)
    with pytest.raises(HostError, match="0000:01:00.0: BAR 0 has 3000 bytes"):
        attach(device, irq)
    irq.close()


def test_the_table_s_pages_are_left_out(made):
    function, _, _ = made
    around = function.interrupts.around_table
    assert around(0, 0, BAR_BYTES) == [(0, 0x2000), (0x3000, BAR_BYTES)]
    assert around(2, 0, 0x1000) == [(0, 0x1000)]


def test_overlay():
    overlay = Overlay(16)
    overlay.own(2, 0xAB, 1)
    assert overlay.read(0, 4, 0x11223344) == 0x11AB3344
    assert overlay.touches(0, 4)
    assert not overlay.touches(3, 4)
