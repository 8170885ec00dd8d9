"""Configuration space by ports and by ECAM: what Python is not asked for is what it would say."""

from __future__ import annotations

import pytest

from devices.pci.bar import Bar
from devices.pci.config_space import BAR0, ConfigSpace
from devices.pci.function import PciFunction
from devices.pci.root import PciRoot
from vmm._native.kvm.bus import Bus
from vmm._native.ports.pciconfig import ConfigTable

ADDRESS, DATA = 0xCF8, 0xCFC
ECAM = 0xE8000000
ENABLE = 1 << 31
SLOT, ASKED_SLOT = 3, 5


class Odd(PciFunction):
    """All that it says is its own, as a device of the host's does."""

    asked_dwords = None

    def config_read(self, offset: int, size: int) -> int:
        return (0xA1B2C3D4 + offset) & ((1 << 8 * size) - 1)


class Rig:
    """Both ways to a bus with two functions; ``asked``: how often Python was."""

    def __init__(self) -> None:
        self.pio, self.mmio = Bus("ports"), Bus("MMIO")
        self.root = PciRoot(self.mmio, [(0xC0000000, 1 << 28)], self.pio, (0xC000, 0x1000))
        config = ConfigSpace(0x1AF4, 0x1042, 0x018000, 1, (0x1AF4, 0x1042))
        config.add_capability(bytes([9, 0, *range(2, 30)]))
        self.card = PciFunction("card", config)
        self.card.bar_target = lambda bar: self  # type: ignore[method-assign]
        self.card.add_bar(Bar(0, 0x1000))
        self.root.add(SLOT, self.card)
        self.root.add(ASKED_SLOT, Odd("odd", ConfigSpace(1, 2, 3, 4, (5, 6))))
        self.pio.attach(ADDRESS, 8, self.root.ports.target, "ports")
        self.mmio.attach(ECAM, 1 << 28, self.root.ecam.target, "ECAM")
        self.asked = 0
        self.direct = self.root.config_read
        self.root.config_read = self._config_read  # type: ignore[method-assign]

    def _config_read(self, *where: int) -> int:
        self.asked += 1
        return self.direct(*where)

    def by_ports(self, slot: int, function: int, register: int, size: int, bus: int = 0) -> int:
        address = ENABLE | bus << 16 | slot << 11 | function << 8 | register & 0xFC
        self.pio.write(ADDRESS, address, 4)
        return self.pio.read(DATA + (register & 3), size)

    def by_ecam(self, slot: int, function: int, register: int, size: int, bus: int = 0) -> int:
        return self.mmio.read(ECAM | bus << 20 | slot << 15 | function << 12 | register, size)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_both_ways_say_what_python_says(size):
    rig = Rig()
    for slot in (0, 1, SLOT, ASKED_SLOT, 31):
        for function in (0, 1, 7):
            for register in range(0, 256, size):
                wanted = rig.direct(0, slot, function, register, size)
                assert rig.by_ports(slot, function, register, size) == wanted
                assert rig.by_ecam(slot, function, register, size) == wanted
    for register in range(256, 4096, 4 * size):
        assert rig.by_ecam(SLOT, 0, register, size) == rig.direct(0, SLOT, 0, register, size)


def test_python_is_asked_for_registers_that_live_and_for_no_others():
    rig = Rig()
    for slot, function, bus in ((31, 0, 0), (SLOT, 1, 0), (SLOT, 0, 1), (1, 7, 255)):
        assert rig.by_ports(slot, function, 0, 4, bus) == 0xFFFFFFFF
        assert rig.by_ecam(slot, function, 0, 4, bus) == 0xFFFFFFFF
    assert rig.by_ports(SLOT, 0, 0, 4) == rig.by_ecam(SLOT, 0, 0, 4) == 0x10421AF4
    assert rig.asked == 0
    rig.by_ports(SLOT, 0, BAR0, 4)
    rig.by_ecam(SLOT, 0, BAR0 + 2, 2)
    rig.by_ports(ASKED_SLOT, 0, 0, 4)
    assert rig.asked == 3
    assert rig.by_ecam(SLOT, 0, 0x100, 4) == rig.by_ecam(SLOT, 0, 0xFFC, 4) == 0
    assert rig.asked == 3
    rig.by_ecam(ASKED_SLOT, 0, 0x100, 4)
    assert rig.asked == 4


def test_what_is_written_is_read_at_once_and_nothing_else_changes():
    rig = Rig()
    before = bytes(rig.card.config.data)
    for slot, function in ((31, 0), (SLOT, 1)):
        rig.by_ports(slot, function, 4, 2)
        rig.pio.write(DATA, 0xFFFF, 2)
        rig.mmio.write(ECAM | slot << 15 | function << 12 | 4, 0xFFFF, 2)
    assert bytes(rig.card.config.data) == before
    rig.by_ports(SLOT, 0, 0x3C, 1)
    rig.pio.write(DATA, 7, 1)
    assert rig.by_ecam(SLOT, 0, 0x3C, 1) == rig.by_ports(SLOT, 0, 0x3C, 1) == 7
    both = [rig.direct(0, SLOT, 0, register, 4) for register in (0x3C, 0x40)]
    assert rig.by_ecam(SLOT, 0, 0x3C, 8) == both[0] | both[1] << 32


def test_the_address_register_in_parts():
    rig = Rig()
    rig.pio.write(ADDRESS, 0x11223344, 4)
    rig.pio.write(ADDRESS + 3, 0x80, 1)
    assert rig.pio.read(ADDRESS, 4) == rig.root.ports.address == 0x80223344
    assert rig.pio.read(ADDRESS + 1, 2) == 0x2233
    # Neither across its end, nor data while bit 31 is clear.
    assert rig.pio.read(ADDRESS + 2, 4) == 0xFFFFFFFF
    rig.pio.write(ADDRESS + 2, 0, 4)
    assert rig.pio.read(ADDRESS, 4) == 0x80223344
    rig.pio.write(ADDRESS, SLOT << 11, 4)
    assert rig.pio.read(DATA, 4) == 0xFFFFFFFF
    assert rig.asked == 0


def test_bytes_that_could_move_are_refused():
    with pytest.raises(ValueError, match="4096 bytes"):
        ConfigTable().add(0, bytearray(4095), 0)
    with pytest.raises(ValueError, match="bytearray"):
        ConfigTable().add(0, bytes(4096), 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="slot 32"):
        ConfigTable().add(32, bytearray(4096), 0)
    kept, data = ConfigTable(), bytearray(4096)
    kept.add(0, data, 0)
    with pytest.raises(BufferError):
        data.clear()
