"""Each device's state: there and back, on itself and on a new one; hostile ones are refused."""

from __future__ import annotations

import os

import pytest

from devices.acpi_pm import POWER_BUTTON, AcpiRegisters, Ged
from devices.debugcon import FirmwareDebugPort
from devices.i8042 import I8042
from devices.native_state import set_device_state
from devices.pci.bar import Bar, IoBar, RomBar
from devices.pci.config_space import COMMAND, ConfigSpace
from devices.pci.function import PciFunction
from devices.pci.root import PciRoot
from devices.pvpanic import PANICKED, PvPanic
from devices.rtc import Rtc
from tests.support.hostile_state import hostile
from vmm._native.console.byteport import BytePort
from vmm._native.console.uart import Uart
from vmm._native.kvm.bus import Bus
from vmm._native.ports.pmtimer import PmTimer
from vmm._native.ports.postport import PostPort
from vmm.errors import StateError


class Line:
    def __init__(self) -> None:
        self.settled = 0

    def pulse(self) -> None: ...

    def settle(self) -> None:
        self.settled += 1


def uart() -> Uart:
    return Uart(BytePort(), -1)


MAKERS = {
    "COM1": uart,
    "i8042": I8042,
    "CMOS": lambda: Rtc(64 << 20, 0),
    "POST code port": PostPort,
    "firmware debug port": FirmwareDebugPort,
    "panic port": PvPanic,
    "ACPI registers": AcpiRegisters,
    "GED": lambda: Ged(Line()),
    "PM timer": PmTimer,
}


def use(name: str, device) -> None:
    """Something that shows in its state."""
    bus = Bus("ports")
    bus.attach(0, 8, device, name)
    if name == "COM1":
        # Divisor, scratch, loop back with two bytes in it.
        for register, value in ((3, 0x80), (0, 1), (3, 3), (7, 0x5A), (1, 2), (4, 0x1B), (0, 65)):
            bus.write(register, value, 1)
        bus.write(0, 66, 1)
    elif name == "CMOS":
        bus.write(0, 0x41, 1)
        bus.write(1, 0x77, 1)
    elif name == "POST code port":
        bus.write(0, 0x42, 1)
    elif name == "firmware debug port":
        bus.write(0, ord("x"), 1)
    elif name == "panic port":
        bus.write(0, PANICKED, 1)
    elif name == "GED":
        device.power_button()


@pytest.mark.parametrize("name", MAKERS)
def test_there_and_back(name):
    device, fresh = MAKERS[name](), MAKERS[name]()
    before = device.state()
    use(name, device)
    used = device.state()
    set_device_state(name, fresh, used)
    set_device_state(name, device, before)
    if name != "PM timer":
        assert (fresh.state(), device.state()) == (used, before)
        assert (used != before) == (name not in ("i8042", "ACPI registers"))
    assert used["version"] == 1


@pytest.mark.parametrize("name", MAKERS)
def test_hostile_states(name):
    device = MAKERS[name]()
    use(name, device)
    good = device.state()
    refused = 0
    for what, bad in hostile(good):
        try:
            set_device_state(name, device, bad)
        except StateError as error:
            refused += 1
            assert str(error).startswith(f"{name}: the state"), what
            if name != "PM timer":
                assert device.state() == good, f"{what}: refused, and changed it all the same"
        else:
            set_device_state(name, device, good)
    assert refused >= 10


def test_com1_goes_on():
    port = BytePort()
    first = Uart(port, -1)
    use("COM1", first)
    port.host_write(b"typed")
    state = first.state()
    assert (state["loop"], state["input"]) == (b"AB", b"typed")
    other = BytePort()
    other.host_write(b"other words")
    second = Uart(other, -1)
    set_device_state("COM1", second, state)
    bus = Bus("ports")
    bus.attach(0, 8, second, "COM1")
    assert [bus.read(0, 1), bus.read(0, 1), bus.read(7, 1)] == [65, 66, 0x5A]
    bus.write(4, 8, 1)
    assert bytes(bus.read(0, 1) for _ in range(5)) == b"typed"
    assert bus.read(5, 1) & 1 == 0


def test_com1_raised_its_line():
    line = os.eventfd(0)
    port = BytePort()
    device = Uart(port, line)
    bus = Bus("ports")
    bus.attach(0, 8, device, "COM1")
    bus.write(0, 65, 1)
    assert not device.raised()
    mark = device.mark()
    bus.write(1, 1, 1)
    port.host_write(b"x")
    assert device.mark() != mark
    assert device.raised()
    assert not device.raised()
    device.close()
    with pytest.raises(ValueError, match="left its port"):
        device.state()
    os.close(line)


def test_the_pm_timer_goes_on_from_where_it_was():
    timer = PmTimer()
    bus = Bus("ports")
    bus.attach(0, 4, timer, "PM timer")
    for ticks in (0, 5, 0xFFFFFF00):
        set_device_state("PM timer", timer, {"version": 1, "ticks": ticks})
        assert 0 <= (bus.read(0, 4) - ticks) & 0xFFFFFFFF < 3_579_545


def test_the_power_button_waits_for_its_line():
    line = Line()
    ged = Ged(line)
    ged.quiesce()
    assert line.settled == 0
    ged.power_button()
    ged.quiesce()
    ged.quiesce()
    assert line.settled == 1
    set_device_state("GED", ged, {"version": 1, "pending": 0})
    assert ged.read(0, 1) == 0
    set_device_state("GED", ged, {"version": 1, "pending": POWER_BUTTON})
    assert ged.read(0, 1) == POWER_BUTTON


# --- the PCI bus ---

LOW = (0xE000_0000, 0x10_0000)
HIGH = (0x40_0000_0000, 0x100_0000)
PORTS = (0xC000, 0x1000)


class Card(PciFunction):
    def __init__(self, number: int, bars: list[Bar]) -> None:
        super().__init__(f"card{number}", ConfigSpace(0x1234, number, 0, 0, (0, 0)))
        for bar in bars:
            self.add_bar(bar)
        self.moves = 0

    def bar_target(self, bar: Bar) -> object:
        return self

    def bar_moved(self, bar, old, new) -> None:
        self.moves += 1

    def read(self, offset: int, size: int) -> int:
        return 0x55

    def write(self, offset: int, value: int, size: int) -> None: ...


class PciBus:
    def __init__(self) -> None:
        self.mmio, self.pio = Bus("MMIO"), Bus("ports")
        self.root = PciRoot(self.mmio, [LOW, HIGH], self.pio, PORTS)
        self.cards = [
            Card(1, [Bar(0, 0x1000), IoBar(1, 0x20), RomBar(0x800)]),
            Card(2, [Bar(0, 0x4000, wide=True)]),
        ]
        for slot, card in enumerate(self.cards, 1):
            self.root.add(slot, card)
            for number, bar in enumerate(card.bars):
                window = PORTS if bar.space == "ports" else (HIGH if bar.wide else LOW)
                bar.value = window[0] + 0x4000 * number % window[1]
            card.enable()

    def ranges(self):
        return self.mmio.ranges(), self.pio.ranges()


def test_the_bus_there_and_back():
    one, two = PciBus(), PciBus()
    before, at_first = one.root.state(), one.ranges()
    one.root.ports.write(0, 0x80000810, 4)
    one.root.config_write(0, 1, 0, 0x10, LOW[0] + 0x9000, 4)
    one.root.config_write(0, 1, 0, 0x30, LOW[0] + 0xA001, 4)
    one.root.config_write(0, 2, 0, 0x10, 0xFFFFFFFF, 4)  # in the middle of a size probe
    one.root.config_write(0, 2, 0, 0x3C, 11, 1)
    after, moved = one.root.state(), one.ranges()
    assert after != before
    two.root.set_state(after)
    assert (two.root.state(), two.ranges()) == (after, moved)
    assert two.root.config_read(0, 2, 0, 0x10, 4) & ~0xF == -0x4000 & 0xFFFFFFFF
    one.root.set_state(before)
    assert (one.root.state(), one.ranges()) == (before, at_first)
    moves = [card.moves for card in one.cards]
    one.root.set_state(before)
    assert [card.moves for card in one.cards] == moves


def test_bars_that_change_places():
    bus = PciBus()
    here, there = LOW[0], LOW[0] + 0x8000
    bus.root.config_write(0, 1, 0, 0x30, there + 1, 4)
    before = bus.root.state()
    bus.root.config_write(0, 1, 0, COMMAND, 0, 2)
    bus.root.config_write(0, 1, 0, 0x10, there, 4)
    bus.root.config_write(0, 1, 0, 0x30, here + 1, 4)
    bus.root.config_write(0, 1, 0, COMMAND, 3, 2)
    swapped = bus.root.state()
    for state in (before, swapped, before):
        bus.root.set_state(state)
        assert bus.root.state() == state


def test_hostile_states_of_the_bus():
    bus = PciBus()
    good, ranges = bus.root.state(), bus.ranges()
    refused = 0
    for what, bad in hostile(good):
        try:
            bus.root.set_state(bad)
        except StateError as error:
            refused += 1
            assert str(error).startswith("PCI bus: the state"), what
            assert (bus.root.state(), bus.ranges()) == (good, ranges), what
        else:
            bus.root.set_state(good)
    assert refused > 300


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda one: one["bars"][0].update(mapped=LOW[0] + LOW[1]), "outside the PCI windows"),
        (lambda one: one["bars"][0].update(mapped=LOW[0] + 0x800), "outside the PCI windows"),
        (lambda one: one["bars"][0].update(mapped=HIGH[0]), "outside the PCI windows"),
        (lambda one: one["bars"][0].update(value=0x10), "no 32-bit memory address"),
        (lambda one: one["bars"][0].update(value=1 << 40), "no 32-bit memory address"),
        (lambda one: one["bars"][0].update(flags=4), "flags"),
        (lambda one: one["bars"][2].update(mapped=LOW[0]), "answer at 0xe0000000 both"),
        (lambda one: one.update(config=b"\x99" + one["config"][1:]), "where no guest can write"),
        (lambda one: one.update(config=one["config"] + b"x"), "64 bytes are needed"),
        (lambda one: one.update(name="card2"), "'card1' is needed"),
    ],
)
def test_states_that_no_guest_brings_about(change, told):
    bus = PciBus()
    state = bus.root.state()
    change(state["functions"][1])
    with pytest.raises(StateError, match=told):
        bus.root.set_state(state)
    assert bus.ranges() == PciBus().ranges()
