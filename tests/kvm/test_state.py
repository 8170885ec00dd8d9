"""The devices of a machine as a value: put back on the same machine, or into a new one."""

from __future__ import annotations

import os
import random
import struct
import threading
import time
from types import SimpleNamespace

import pytest

from devices.vfio.passthrough import PassthroughFunction
from tests.kvm.test_exhaustion import low_bars
from tests.kvm.test_msix import requested
from tests.support.guest_asm import Program
from tests.support.hostile_state import hostile
from tests.support.speed import patience
from tests.support.tiny_machine import TinyMachine
from tests.support.two_vcpus import activate
from vmm._native.kvm.bus import CONTINUE
from vmm.debug.machinestate import MachineState
from vmm.errors import StateError

DISK, RNG = 2, 4
QUEUE, VECTOR, SPURIOUS = 0x300000, 0x51, 0xFEE000F0
DOORBELL, TABLE = 0x6000, 0x8000
HEADER, DATA, STATUS = 0x310000, 0x320000, 0x330000
AVAIL_IDX = QUEUE + 0x1000 + 2
USED_IDX = QUEUE + 0x2000 + 2
NEXT, WRITABLE = 1, 2


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "system.img").write_bytes(random.Random(7).randbytes(1 << 20))
    return tmp_path


def add_read(memory, number: int, sector: int) -> None:
    """The driver's side of a read of 4 KiB, the ``number``-th."""
    add(memory, number, 0, sector, WRITABLE)


def add_write(memory, number: int, sector: int, data: bytes) -> None:
    """The same of a write."""
    memory.write(DATA + 4096 * number, data)
    add(memory, number, 1, sector, 0)


def add(memory, number: int, kind: int, sector: int, writable: int) -> None:
    """What the device may see from its last line on: it may be polling."""
    header, data, status = HEADER + 16 * number, DATA + 4096 * number, STATUS + number
    memory.write(header, struct.pack("<IIQ", kind, 0, sector))
    memory.write(status, b"\xff")
    buffers = (header, 16, NEXT), (data, 4096, NEXT | writable), (status, 1, WRITABLE)
    for index, one in enumerate(buffers):
        slot = 3 * number + index
        memory.write(QUEUE + 16 * slot, struct.pack("<QIHH", *one, slot + 1))
    memory.write(QUEUE + 0x1000 + 4 + 2 * number, struct.pack("<H", 3 * number))
    memory.write(QUEUE + 0x1000 + 2, struct.pack("<H", number + 1))


def answer(memory, number: int) -> tuple[int, bytes]:
    return memory.read(STATUS + number, 1)[0], memory.read(DATA + 4096 * number, 4096)


def set_up(tiny: TinyMachine) -> Program:
    """A driver that turns the disk and its MSI-X vector 1 on and reads once."""
    bar = low_bars(tiny)[DISK]
    program = Program().write(SPURIOUS, 0x1FF)
    for offset, value in ((0, 0xFEE00000), (4, 0), (8, VECTOR), (12, 0)):
        program.write(bar + TABLE + 16 + offset, value)
    function = tiny.machine.virtio[DISK - 1]
    tiny.machine.pci.config_write(0, DISK, 0, function._msix_offset + 2, 0x8000, 2)
    program.write(bar + 0x16, 0, 2).write(bar + 0x1A, 1, 2)
    activate(program, bar)
    add_read(tiny.machine.memory, 0, 8)
    return program.write(bar + DOORBELL, 0, 2).wait16(USED_IDX, 1)


def copy_ram(one: TinyMachine, other: TinyMachine) -> None:
    (gpa, size), *_ = one.machine.memory.regions
    other.machine.memory.write(gpa, one.machine.memory.read(gpa, size))


def test_a_disk_goes_on_in_a_new_machine(folder):
    image = (folder / "system.img").read_bytes()
    with TinyMachine(folder, b"\xf4") as first:
        first.load(set_up(first).power_off())
        assert first.run().kind == "shutdown"
        assert answer(first.machine.memory, 0) == (0, image[4096:8192])
        devices = MachineState(first.machine)
        devices.quiesce()
        states = devices.state()
        assert states["disk0"]["positions"] == [[0, 1, 1, 1]]
        first._disks[0].close()
        with TinyMachine(folder, b"\xf4") as second:
            copy_ram(first, second)
            fresh = MachineState(second.machine)
            fresh.quiesce()
            fresh.set_state(states)
            assert {**fresh.state(), "PM timer": 0} == {**states, "PM timer": 0}
            bar = second.machine.virtio[DISK - 1].bar.mapped
            add_read(second.machine.memory, 1, 64)
            second.machine.memory.write(AVAIL_IDX, b"\1\0")
            program = Program().write(SPURIOUS, 0x1FF).write(AVAIL_IDX, 2, 2)
            program.write(bar + DOORBELL, 0, 2).wait16(USED_IDX, 2)
            second.load(program.power_off())
            fresh.go_on()
            assert second.run().kind == "shutdown"
            assert answer(second.machine.memory, 1) == (0, image[64 * 512 :][:4096])
            assert answer(second.machine.memory, 0) == (0, image[4096:8192])
            assert requested(second.machine, VECTOR)
            assert belled(second), "the kernel hears the bell"
            assert fresh.touched() >= {"disk0", "ACPI registers"}


def belled(tiny: TinyMachine) -> bool:
    function = tiny.machine.virtio[DISK - 1]
    return function._belled == [(function.bar.mapped + DOORBELL, function._kick_fds[0])]


def test_back_on_the_same_machine_again_and_again(folder):
    image = (folder / "system.img").read_bytes()
    with TinyMachine(folder, b"\xf4") as tiny:
        tiny.load(set_up(tiny).power_off())
        assert tiny.run().kind == "shutdown"
        memory, disk = tiny.machine.memory, tiny.machine.virtio[DISK - 1]
        devices = MachineState(tiny.machine)
        devices.quiesce()
        states, ram = devices.state(), memory.read(QUEUE, 0x40000)
        devices.clear_touched()
        workers = disk.device.workers()
        for turn in range(20):
            devices.go_on()
            add_read(memory, 1, turn)
            os.eventfd_write(disk._kick_fds[0], 1)
            wait(lambda: memory.read(USED_IDX, 2) == b"\2\0")
            assert answer(memory, 1) == (0, image[turn * 512 :][:4096])
            devices.quiesce()
            assert devices.touched() == {"disk0"}
            memory.write(QUEUE, ram)
            devices.set_state(states, base=states)
            assert devices.state()["disk0"] == states["disk0"]
            assert devices.touched() == set()
        assert disk.device.workers() == workers, "the threads are the same ones"


def wait(condition, seconds: float = 20) -> None:
    event = threading.Event()
    for _ in range(int(seconds * 200)):
        if condition():
            return
        event.wait(0.005)
    raise AssertionError("it did not come about")


@pytest.mark.parametrize("change", ["reset", "moved", "masked", "pending", "off"])
def test_whatever_the_guest_did_since(folder, change):
    with TinyMachine(folder, b"\xf4") as tiny:
        tiny.load(set_up(tiny).power_off())
        assert tiny.run().kind == "shutdown"
        machine, function = tiny.machine, tiny.machine.virtio[DISK - 1]
        devices = MachineState(machine)
        devices.quiesce()
        states, bells = devices.state(), list(function._belled)
        ram = machine.memory.read(QUEUE, 0x40000)
        devices.clear_touched()
        devices.go_on()
        bar = function.bar.mapped
        if change == "reset":
            machine.mmio.write(bar + 0x14, 0, 1)
            assert not function.active
        elif change == "moved":
            machine.mmio.write(0xE8000000 + (DISK << 15) + 0x10, 0xE5000000, 4)
            assert function.bar.mapped == 0xE5000000
        elif change == "off":
            machine.mmio.write(0xE8000000 + (DISK << 15) + 4, 0, 2)
            assert function.bar.mapped is None
        else:
            machine.mmio.write(bar + TABLE + 16 + 12, 1, 4)
            if change == "pending":
                os.eventfd_write(function.msix.vectors[1].fd, 1)
                assert function.msix.vectors[1].pending
        devices.quiesce()
        machine.memory.write(QUEUE, ram)
        devices.set_state(states, base=states)
        assert {**devices.state(), "PM timer": 0} == {**states, "PM timer": 0}
        assert function._belled == bells
        assert function.msix.vectors[1].unmasked
        assert not function.msix.vectors[1].pending
        devices.go_on()
        add_read(machine.memory, 1, 3)
        os.eventfd_write(function._kick_fds[0], 1)
        wait(lambda: machine.memory.read(USED_IDX, 2) == b"\2\0")
        assert requested(machine, VECTOR)


def test_a_pending_interrupt_waits_in_the_new_machine_as_well(folder):
    with TinyMachine(folder, b"\xf4") as tiny:
        tiny.load(set_up(tiny).power_off())
        assert tiny.run().kind == "shutdown"
        machine, function = tiny.machine, tiny.machine.virtio[DISK - 1]
        devices = MachineState(machine)
        devices.quiesce()
        vector = function.msix.vectors[1]
        machine.mmio.write(function.bar.mapped + TABLE + 16 + 12, 1, 4)
        os.eventfd_write(vector.fd, 1)
        states = devices.state()
        assert states["disk0"]["msix"]["pending"] == [1]
        vector.clear()
        devices.set_state(states)
        assert function.msix.pba_read(0, 8) == 2


def test_hostile_states(folder):
    with TinyMachine(folder, b"\xf4") as tiny:
        tiny.load(set_up(tiny).power_off())
        assert tiny.run().kind == "shutdown"
        devices = MachineState(tiny.machine)
        devices.quiesce()
        good = devices.state()
        refused = 0
        for what, bad in hostile({name: good[name] for name in ("disk0", "console", "rng")}):
            try:
                devices.set_state({**good, **bad} if "more" not in bad else bad)
            except StateError as error:
                refused += 1
                assert str(error).split(":")[0] in good or "machine" in str(error), what
        assert refused > 500
        devices.set_state(good)
        assert {**devices.state(), "PM timer": 0} == {**good, "PM timer": 0}
        devices.go_on()
        add_read(tiny.machine.memory, 1, 3)
        os.eventfd_write(tiny.machine.virtio[DISK - 1]._kick_fds[0], 1)
        wait(lambda: tiny.machine.memory.read(USED_IDX, 2) == b"\2\0")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda one: one.update(positions=[[1, 0, 0, 0]]), "positions of the queues [1]"),
        (lambda one: one.update(positions=[[0, 0, 0, 0]] * 2), "positions is a list of 2"),
        (lambda one: one.update(status=1), "active is True with status 0x1"),
        (lambda one: one.update(config_vector=9), "config_vector is 0x9: 2 vectors"),
        (lambda one: one["queues"][0].update(size=96), "queues[0].size is 96"),
        (lambda one: one["queues"][0].update(size=256), "queues[0].size is 256"),
        (lambda one: one.update(accepted=1 << 63 | 1 << 32), "not all of it is offered"),
        (lambda one: one["device"].update(capacity=7), "device.capacity is 0x7"),
        (lambda one: one["queues"][0].update(addresses=[1 << 40, 0, 0]), "cannot be used"),
        (lambda one: one["queues"][0].update(addresses=[3, 0, 0]), "cannot be used"),
    ],
)
def test_states_that_no_driver_brings_about(folder, change, told):
    with TinyMachine(folder, b"\xf4") as tiny:
        tiny.load(set_up(tiny).power_off())
        assert tiny.run().kind == "shutdown"
        devices = MachineState(tiny.machine)
        devices.quiesce()
        states = devices.state()
        change(states["disk0"])
        with pytest.raises(StateError) as caught:
            devices.set_state(states)
        assert told in str(caught.value)
        assert str(caught.value).startswith("disk0: the state")


def test_devices_that_do_not_match(folder):
    with TinyMachine(folder, b"\xf4") as tiny:
        devices = MachineState(tiny.machine)
        states = devices.state()
        for wrong, told in (
            ({name: one for name, one in states.items() if name != "rng"}, "rng: the state is mis"),
            ({**states, "disk7": {}}, "'disk7' that is not here"),
            ([], "a list of 0"),
        ):
            with pytest.raises(StateError, match=told):
                devices.set_state(wrong)


def test_which_devices_were_used(folder):
    with TinyMachine(folder, Program().out(0x80, 7).out(0x70, 3).power_off()) as tiny:
        devices = MachineState(tiny.machine)
        assert devices.touched() == set()
        assert tiny.run().kind == "shutdown"
        assert devices.touched() == {"POST code port", "CMOS", "ACPI registers"}
        devices.clear_touched()
        tiny.machine.power_button()
        tiny.machine.resize(100, 30)
        tiny._serial.port.host_write(b"x")
        assert devices.touched() == {"GED", "console", "COM1"}
        devices.clear_touched()
        tiny.machine.pci.config_read(0, DISK, 0, 0, 4)
        assert devices.touched() == set()
        tiny.machine.pio.read(0xCFC, 4)
        assert devices.touched() == {"PCI bus"}


def test_a_device_of_a_script_takes_part_or_says_that_it_cannot(folder):
    class Counter:
        count = 0

        def read(self, offset, size):
            self.count += 1
            return self.count

        def write(self, offset, value, size): ...

    class Kept(Counter):
        def state(self):
            return {"version": 1, "count": self.count}

        def set_state(self, state):
            self.count = state["count"]

    with TinyMachine(folder, b"\xf4") as tiny:
        kept = Kept()
        devices = MachineState(tiny.machine)
        tiny.machine.pio.attach(0x700, 1, kept, "counter")
        states = devices.state()
        tiny.machine.pio.read(0x700, 1)
        assert devices.touched() == {"counter"}
        devices.set_state(states, base=states)
        assert kept.count == 0
        tiny.machine.pio.attach(0x701, 1, Counter(), "other")
        with pytest.raises(StateError, match="other: a Counter has no state"):
            devices.state()


def test_a_device_of_the_hosts_says_that_it_cannot():
    function = SimpleNamespace(name="0000:65:00.0")
    with pytest.raises(StateError, match="0000:65:00.0: a device of the host's cannot be stopped"):
        PassthroughFunction.quiesce(function)


def test_a_stopped_machine_has_no_threads_of_devices_left(folder):
    with TinyMachine(folder, b"\xf4") as tiny:
        tiny.load(set_up(tiny).power_off())
        tiny.run()
        devices = MachineState(tiny.machine)
        devices.quiesce()
        assert "disk0-q0" not in threads()
        devices.go_on()
        # It names itself once it has a processor.
        deadline = time.monotonic() + patience(10)
        while "disk0-q0" not in threads() and time.monotonic() < deadline:
            time.sleep(0.001)
        assert "disk0-q0" in threads()
        assert tiny.machine.vcpus[0].loop.outcome != CONTINUE


def threads() -> set[str]:
    folder = "/proc/self/task"
    found = set()
    for task in os.listdir(folder):
        with open(f"{folder}/{task}/comm") as file:
            found.add(file.read().strip())
    return found
