"""A machine whose disk is an overlay: back to what was frozen, and a second machine from there."""

from __future__ import annotations

import os
import random
import struct
from contextlib import contextmanager

import pytest

from tests.kvm.test_state import (
    AVAIL_IDX,
    DISK,
    QUEUE,
    STATUS,
    USED_IDX,
    add_read,
    add_write,
    answer,
    copy_ram,
    set_up,
    wait,
)
from tests.support import tiny_machine
from tests.support.elf_builder import build_elf
from tests.support.guest_asm import Program
from tests.support.tiny_machine import TinyMachine
from vmm._native.ports.postport import PostPort
from vmm.debug.guest import Guest
from vmm.debug.machinestate import MachineState
from vmm.errors import StateError
from vmm.host.disk import Disk
from vmm.host.overlay import OverlayDisk


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "system.img").write_bytes(random.Random(7).randbytes(1 << 20))
    return tmp_path


@contextmanager
def machine_over(folder, monkeypatch, disk):
    config = Disk.open(str(folder / "config.img"), read_only=True)
    monkeypatch.setattr(tiny_machine, "open_disks", lambda *images: [disk, config])
    with TinyMachine(folder, b"\xf4") as tiny:
        yield tiny


def write(tiny: TinyMachine, number: int, sector: int, data: bytes) -> None:
    """As the driver: the ``number``-th request, to its end."""
    memory = tiny.machine.memory
    add_write(memory, number, sector, data)
    ring(tiny, number)
    assert memory.read(STATUS + number, 1) == b"\0"


def read(tiny: TinyMachine, number: int, sector: int) -> bytes:
    add_read(tiny.machine.memory, number, sector)
    ring(tiny, number)
    status, data = answer(tiny.machine.memory, number)
    assert status == 0
    return data


def ring(tiny: TinyMachine, number: int) -> None:
    os.eventfd_write(tiny.machine.virtio[DISK - 1]._kick_fds[0], 1)
    done = struct.pack("<H", number + 1)
    wait(lambda: tiny.machine.memory.read(USED_IDX, 2) == done)


def test_back_and_forth(folder, monkeypatch):
    (folder / "config.img").write_bytes(bytes(1 << 20))
    image = (folder / "system.img").read_bytes()
    old, new, other = b"o" * 4096, b"n" * 4096, b"x" * 4096
    disk = OverlayDisk.above(str(folder / "system.img"))
    with machine_over(folder, monkeypatch, disk) as tiny:
        tiny.load(set_up(tiny).power_off())
        assert tiny.run().kind == "shutdown"
        write(tiny, 1, 64, old)
        devices = MachineState(tiny.machine)
        devices.quiesce()
        states, layers = devices.state(), devices.overlays()["disk0"].freeze()
        devices.clear_touched()
        ram = tiny.machine.memory.read(QUEUE, 0x40000)
        assert tiny.machine.status()["devices"][DISK - 1]["engine"] == "overlay"
        for _ in range(3):
            devices.go_on()
            write(tiny, 2, 64, new)
            assert read(tiny, 3, 64) == new
            devices.quiesce()
            tiny.machine.memory.write(QUEUE, ram)
            devices.overlays()["disk0"].restore(layers)
            devices.set_state(states, base=states)
        with machine_over(folder, monkeypatch, disk.fork(layers)) as second:
            copy_ram(tiny, second)
            fresh = MachineState(second.machine)
            fresh.set_state(states)
            fresh.go_on()
            devices.go_on()
            assert second.machine.memory.read(AVAIL_IDX, 2) == b"\2\0"
            write(second, 2, 64, other)
            assert read(tiny, 2, 64) == old
            assert read(second, 3, 64) == other
            assert read(second, 4, 0) == image[:4096]
    assert (folder / "system.img").read_bytes() == image


def test_a_disk_that_is_written_itself_cannot_go_back(folder):
    told = r"disk0: its image .*system.img is written itself"
    with TinyMachine(folder, b"\xf4") as tiny, pytest.raises(StateError, match=told):
        MachineState(tiny.machine).overlays()


def test_a_script_changes_no_image_and_types_what_it_will(folder):
    kernel = folder / "guest.elf"
    kernel.write_bytes(build_elf(Program().out(0x80, 7).power_off()))
    with Guest(kernel=kernel, system_image=folder / "system.img", memory="16M") as guest:
        devices = MachineState(guest.machine)
        long = bytes(range(256)) * 40
        guest.serial.write(long)
        states = devices.state()
        assert states["COM1"]["input"] == long
        devices.clear_touched()
        overlay = devices.overlays()["disk0"]
        layers = overlay.freeze()
        overlay.write(0, b"x" * 512)
        assert guest.run(seconds=10).kind == "ended"
        for _ in range(5000):
            guest.machine.pio.read(0x3F8, 1)
        guest.serial.write(b"more")
        assert devices.touched() == {"POST code port", "COM1", "ACPI registers"}
        devices.quiesce()
        overlay.restore(layers)
        devices.set_state(states, base=states)
        devices.go_on()
        assert devices.state()["COM1"]["input"] == long
        assert bytes(guest.machine.pio.read(0x3F8, 1) for _ in long) == long
        assert guest.machine.pio.read(0x3FD, 1) & 1 == 0
        # A port of the script's own that came later stays as it is.
        guest.machine.pio.attach(0x700, 1, PostPort(), "mine")
        devices.set_state(states, base=states)
        with pytest.raises(StateError, match="mine: the state is missing"):
            devices.set_state(states)
