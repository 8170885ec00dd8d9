"""A guest's devices by name: where they are, their states, and hooks on them."""

from __future__ import annotations

import pytest

import vmm
from tests.support.guest_asm import Program
from tests.support.speed import patience
from tests.support.tiny_guest import COUNT, results, tiny_guest
from vmm.errors import StateError

PLATFORM = ("COM1", "i8042", "CMOS", "PM timer", "PCI configuration", "ECAM", "GED")


class Plain(vmm.PciDevice):
    bars = {0: 4096, 1: vmm.Bar(16, io=True)}

    def read(self, bar, offset, size):
        return 0x11


def test_each_device_has_a_name_a_place_and_a_state(tmp_path):
    image = tmp_path / "disk"
    image.write_bytes(bytes(1 << 20))
    with tiny_guest(tmp_path, COUNT, system_image=image) as guest:
        names = [device.name for device in guest.devices]
        assert names[:4] == ["host bridge", "console", "disk0", "rng"]
        assert set(PLATFORM) <= set(names)
        assert len(guest.devices) == len(names)
        assert "disk0" in guest.devices
        assert "disk1" not in guest.devices
        for device in guest.devices:
            assert device.state()["version"] == 1
            assert device.status()["name"] == device.name
            assert repr(device) in repr(guest.devices)
            assert device.name in device._repr_html_()
        # All that a trace may name is there.
        for bus in (guest.machine.pio, guest.machine.mmio):
            for _, _, name in bus.ranges():
                assert name.partition(" BAR ")[0] in guest.devices


def test_a_pci_device_says_where_the_guest_sees_it(tmp_path):
    with tiny_guest(tmp_path, COUNT, devices=[Plain]) as guest:
        device = guest.device("plain0")
        assert device.bdf == "00:03.0"
        (first, second) = device.places
        assert device.bars == {0: (4096, first.start), 1: (16, second.start)}
        assert (first.space, second.space) == ("memory", "ports")
        assert f"00:03.0, BAR 0: memory [{first.start:#x}, " in repr(device)
        with pytest.raises(StateError, match=r"plain0: Plain has no state\(\)"):
            device.state()
        assert guest.device("COM1").bdf is None
        assert repr(guest.device("COM1")) == "<device COM1 at ports [0x3f8, 0x400)>"
        assert guest.device("COM1").state()["lcr"] == 3
        assert guest.device("host bridge").places == []
        with pytest.raises(ValueError, match="host bridge.* answers nowhere now"):
            guest.device("host bridge").watch(lambda *_: None)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("disk7", "no device 'disk7': there are host bridge, console, rng"),
        ("com1", r"no device 'com1' \(did you mean COM1\?\)"),
        ("consol", r"no device 'consol' \(did you mean console\?\)"),
        (3, "no device 3: there are"),
    ],
)
def test_an_unknown_name_tells_the_known_ones(tmp_path, name, words):
    with tiny_guest(tmp_path, COUNT) as guest, pytest.raises(KeyError, match=words):
        guest.device(name)


def test_watching_a_device_by_name(tmp_path):
    program = Program().out(0x3FB, 0x1B)
    program.read_port(0x3FB)
    with tiny_guest(tmp_path, program.power_off()) as guest:
        seen = []
        hook = guest.device("COM1").watch(
            lambda cpu, address, value, size: seen.append((address, value))
        )
        assert guest.run(seconds=patience(10)).kind == "ended"
        assert seen == [(0x3FB, 0x1B), (0x3FB, 0x1B)]
        assert (hook.hits, repr(hook)) == (2, "<watch hook at COM1, 2 hits>")
        # The device went on working.
        assert guest.device("COM1").state()["lcr"] == 0x1B


def test_replacing_a_device_by_name_and_giving_it_back(tmp_path):
    with tiny_guest(tmp_path, COUNT, devices=[Plain]) as guest:
        memory, ports = guest.device("plain0").places
        program = Program()
        for _ in range(2):
            program.read(memory.start + 8)
            program.read_port(ports.start)
            program.out(0xE0, 1)
        guest.memory.write(guest.cpus[0].address, program.power_off())
        hook = guest.device("plain0").replace(lambda cpu, address, size: 0x77)
        guest.on_port(0xE0, 1, write=lambda *_: vmm.STOP)
        assert guest.run(seconds=patience(10)).kind == "hook"
        hook.remove()
        assert guest.run(seconds=patience(10)).kind == "hook"
        assert guest.run(seconds=patience(10)).kind == "ended"
        assert [value & 0xFF for value in results(guest, program)] == [0x77, 0x77, 0x11, 0x11]
        assert hook.hits == 2


def test_a_place_that_is_hooked_already_leaves_no_half(tmp_path):
    with tiny_guest(tmp_path, COUNT, devices=[Plain]) as guest:
        device = guest.device("plain0")
        guest.on_port(device.places[1].start, 1)
        with pytest.raises(ValueError, match="overlaps"):
            device.watch(lambda *_: None)
        guest.on_mmio(device.places[0].start, 4096)
        with pytest.raises(ValueError, match="one function for both"):
            device.watch(print, read=print)


def test_names_of_a_closed_guest(tmp_path):
    with tiny_guest(tmp_path, COUNT) as guest:
        devices = guest.devices
    with pytest.raises(RuntimeError, match="the guest is closed"):
        guest.device("COM1")
    assert "COM1" in repr(devices)
