"""PCI devices that are Python classes, and which devices a guest takes."""

from __future__ import annotations

import pytest

import vmm
from tests.kvm.test_pci import cf8, cf8_write
from tests.support.elf_builder import LOAD_GPA
from tests.support.guest_asm import Program
from tests.support.scripted_devices import SECONDS, Registers, Upper, bar_of, pci_slot, run
from tests.support.tiny_guest import results, tiny_guest
from vmm.errors import ConfigError, HostError


def test_a_pci_device_is_found_by_what_its_class_says(tmp_path):
    with tiny_guest(tmp_path, b"\xf4" * 4096, devices=[Registers]) as guest:
        device = guest._devices[0]
        slot, program = pci_slot(guest, device), Program()
        numbers = [cf8(program, slot, register) for register in (0x00, 0x08, 0x2C, 0x10, 0x14)]
        assert run(guest, program).kind == "ended"
        found = [results(guest, program)[n] for n in numbers]
        assert found[:3] == [0xBEEF1234, 0x05800000, 0x5555AAAA]
        assert found[3] == bar_of(device)
        assert found[4] == bar_of(device, 1) | 1
        assert bar_of(device, 2) >= 1 << 32
        assert (device.name, device.resets) == ("registers0", 1)


def test_registers_in_memory_and_ports_reach_the_script(tmp_path):
    device = Registers()
    with tiny_guest(tmp_path, b"\xf4" * 4096, devices=device) as guest:
        program = Program().write(bar_of(device) + 8, 5)
        square = program.read(bar_of(device) + 8)
        program.out(bar_of(device, 1) + 2, 7, 2)
        second = program.read_port(bar_of(device, 1), 1)
        pending = program.read(bar_of(device, 5) + 48, 4)
        assert run(guest, program).kind == "ended"
        assert device.seen == [(0, 8, 5, 4), (1, 2, 7, 2)]
        assert [results(guest, program)[n] for n in (square, second, pending)] == [25, 49, 2]
        with pytest.raises(ValueError, match="no MSI-X vector 3: it has 3"):
            device.msix(3)


def test_a_pci_device_stops_and_fails(tmp_path):
    device = Registers()
    with tiny_guest(tmp_path, b"\xf4" * 4096, devices=[device], cpu_count=2) as guest:
        program = Program().write(bar_of(device), 0x57)
        behind = LOAD_GPA + len(program.code)
        program.write(bar_of(device), 0x58).write(bar_of(device), 0x59)
        stop = run(guest, program)
        assert (stop.kind, stop.where, stop.address) == ("hook", device, behind)
        with pytest.raises(LookupError, match="not this one"):
            guest.run(seconds=SECONDS)
        assert guest.run(seconds=SECONDS).kind == "ended"
        assert [value for _, _, value, _ in device.seen] == [0x57, 0x58, 0x59]


def test_configuration_space_can_be_the_scripts(tmp_path):
    class Odd(Registers):
        def config_read(self, offset, size, value):
            return 0x77 if offset == 0x40 else value

        def config_write(self, offset, value, size):
            self.seen.append((-1, offset, value, size))

    with tiny_guest(tmp_path, b"\xf4" * 4096, devices=[Odd]) as guest:
        device = guest._devices[0]
        slot, program = pci_slot(guest, device), Program()
        number = cf8(program, slot, 0x40, 1)
        cf8_write(program, slot, 0x3C, 9, 1)
        assert run(guest, program).kind == "ended"
        assert results(guest, program)[number] == 0x77
        assert device.seen == [(-1, 0x3C, 9, 1)]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"vendor_id": 0x12345}, "vendor_id=74565"),
        ({"class_code": -1}, "class_code=-1"),
        ({"msix_vectors": 4096}, "msix_vectors=4096"),
        ({"bars": {0: 100}}, "BAR 0 of 100 bytes"),
        ({"bars": {6: 4096}}, "no register is free for BAR 6"),
        ({"bars": {5: vmm.Bar(4096, wide=True)}}, "no register is free for BAR 5"),
        ({"bars": {0: vmm.Bar(16, wide=True), 1: 16}}, "no register is free for BAR 1"),
        ({"bars": dict.fromkeys(range(6), 4096)}, "no BAR is free for the MSI-X table"),
    ],
)
def test_what_is_no_pci_device_is_refused(tmp_path, fields, words):
    with pytest.raises(ValueError, match=words):
        tiny_guest(tmp_path, b"\xf4", devices=[type("Wrong", (Registers,), fields)])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"device_type": 0}, "device_type=0"),
        ({"queue_sizes": ()}, "one queue at least"),
        ({"queue_sizes": (3,)}, "a queue of 3"),
        ({"queue_sizes": (65536,)}, "a queue of 65536"),
        ({"features": 1 << 64}, "features="),
        ({"config": bytes(9000)}, "config of 9000 bytes"),
    ],
)
def test_what_is_no_virtio_device_is_refused(tmp_path, fields, words):
    with pytest.raises(ValueError, match=words):
        tiny_guest(tmp_path, b"\xf4", devices=[type("Wrong", (Upper,), fields)])


def test_the_list_of_devices(tmp_path):
    device = Upper()
    with tiny_guest(tmp_path, b"\xf4", devices=(device, Upper)) as guest:
        assert [d.name for d in guest._devices] == ["upper0", "upper1"]
        assert device.guest is guest
        with pytest.raises(ValueError, match="belongs to a guest already"):
            tiny_guest(tmp_path, b"\xf4", devices=device)
    with pytest.raises(RuntimeError, match="belongs to no guest yet"):
        _ = Upper().memory
    with pytest.raises(ConfigError, match="nonsense"):
        tiny_guest(tmp_path, b"\xf4", devices=[Upper, "nonsense"])
    with pytest.raises(HostError, match="all 32 slots"):
        tiny_guest(tmp_path, b"\xf4", devices=[Upper] * 40)


def test_a_snapshot_says_what_it_cannot_keep(tmp_path):
    with (
        tiny_guest(tmp_path, b"\xf4", devices=Upper) as guest,
        pytest.raises(HostError, match="upper0> is a device in Python"),
    ):
        guest.snapshot()
