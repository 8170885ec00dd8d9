"""A host that lacks something, and bugs of ours: the device breaks, the guest goes on."""

from __future__ import annotations

import os
import resource
import time
from contextlib import contextmanager

import pytest

from devices.virtio import block
from devices.virtio.common_config import NEEDS_RESET
from tests.kvm.test_pci import cf8, cf8_write
from tests.support.guest_asm import Program
from tests.support.log_lines import log_lines
from tests.support.speed import patience
from tests.support.tiny_machine import TinyMachine
from tests.support.two_vcpus import COMMON_STATUS, QUEUE_GPA, activate
from vmm._native.kvm.bus import CONTINUE
from vmm.vm import CAP_X2APIC_API, X2APIC_API_FLAGS

CONSOLE, DISK, CONFIG_DISK, RNG = 1, 2, 3, 4
START_GPA, READY_GPA, GO_GPA = 0x2F0020, 0x2F0000, 0x2F0010
CONFIG_VECTOR = 0x10
MSIX_TABLE, MSIX_ID = 0x8000, 0x11
WORKING = 0xF
PORT = 0x777


@contextmanager
def descriptors_left(count: int):
    """This process can open no more than so many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, hard))
        try:
            while True:
                taken.append(os.dup(2))
        except OSError:
            pass
        for _ in range(count):
            os.close(taken.pop())
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def low_bars(tiny: TinyMachine) -> dict[int, int]:
    """The BARs of all devices, brought below 4 GiB."""
    found = {}
    for function in tiny.machine.virtio:
        base = 0xE1000000 + 0x800000 * function.slot
        tiny.machine.pci.config_write(0, function.slot, 0, 0x10, base, 4)
        if function.bar.wide:
            tiny.machine.pci.config_write(0, function.slot, 0, 0x14, 0, 4)
        found[function.slot] = base
        assert function.bar.mapped == base
    return found


def msix_of(tiny: TinyMachine, slot: int) -> int:
    return tiny.machine.virtio[slot - 1]._msix_offset


def wait_for(condition) -> None:
    deadline = time.monotonic() + patience(20)
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("left", [0, 1, 2, 4, 6])
def test_activation_without_descriptors(tmp_path, left):
    slots = (CONSOLE, DISK, RNG)
    with TinyMachine(tmp_path, b"\xf4") as tiny, log_lines() as lines:
        bars = low_bars(tiny)
        program = Program().wait16(START_GPA, 1)
        states = []
        for step in range(2):
            for number, slot in enumerate(slots):
                program.write(bars[slot] + COMMON_STATUS, 0, 1)
                program.write(bars[slot] + CONFIG_VECTOR, 0, 2)
                activate(program, bars[slot], 1, QUEUE_GPA + 0x10000 * number)
                states.append(program.read(bars[slot] + COMMON_STATUS, 1))
            if step == 0:
                program.write(READY_GPA, 1, 2).wait16(GO_GPA, 1)
        tiny.load(program.power_off())
        tiny.machine.start()
        boot, memory = tiny.machine.vcpus[0].loop, tiny.machine.memory
        wait_for(lambda: boot.running)
        with descriptors_left(left):
            memory.write(START_GPA, b"\1\0")
            wait_for(lambda: memory.read(READY_GPA, 2) == b"\1\0" or not boot.running)
            assert boot.outcome == CONTINUE
            os.fstat(0)  # nothing of others' was closed
        vectors = [tiny.machine.virtio[slot - 1].msix.vectors[0] for slot in slots]
        told = [vector.pending for vector in vectors]
        memory.write(GO_GPA, b"\1\0")
        wait_for(lambda: not boot.running)
        found = tiny.results(program)
        first, second = [found[n] for n in states[:3]], [found[n] for n in states[3:]]
        assert first == [WORKING | (NEEDS_RESET if pending else 0) for pending in told]
        assert sum(told) == len(lines.having("Too many open files"))
        assert left or all(told)
        assert second == [WORKING] * 3


def test_a_disk_that_gets_one_thread_of_two(tmp_path, monkeypatch):
    class Scarce(block.BlkWorker):
        def start(self, name):
            if name.endswith("q1"):
                raise OSError(11, "pthread_create")
            super().start(name)

    monkeypatch.setattr(block, "worker_class", lambda: Scarce)
    with TinyMachine(tmp_path, b"\xf4", CPU_COUNT=2) as tiny, log_lines() as lines:
        bars = low_bars(tiny)
        program = activate(Program(), bars[DISK], queues=2)
        state = program.read(bars[DISK] + COMMON_STATUS, 1)
        tiny.load(program.power_off())
        assert tiny.run().kind == "shutdown"
        assert tiny.results(program)[state] == WORKING | NEEDS_RESET
        assert tiny.machine.virtio[DISK - 1].device._workers == ()
        assert len(lines.having("pthread_create")) == 1


@pytest.mark.parametrize("high", [0x101, 0xFFFFFFFF])
def test_a_message_address_that_kvm_refuses(tmp_path, high):
    with TinyMachine(tmp_path, b"\xf4") as tiny, log_lines() as lines:
        tiny.machine.vm.fd.enable_cap(CAP_X2APIC_API, X2APIC_API_FLAGS)
        bars = low_bars(tiny)
        program = Program()

        def unmask(slot: int, address_high: int) -> None:
            entry = bars[slot] + MSIX_TABLE
            for offset, value in ((0, 0xFEE00000), (4, address_high), (8, 0x51), (12, 0)):
                program.write(entry + offset, value)

        for slot in (DISK, RNG):
            cf8_write(program, slot, msix_of(tiny, slot) + 2, 0x8000, 2)
        unmask(DISK, high)
        kept = program.read(bars[DISK] + MSIX_TABLE + 4)
        unmask(RNG, 0)
        program.write(READY_GPA, 1, 2).wait16(GO_GPA, 1)
        unmask(DISK, 0)
        tiny.load(program.power_off())
        disk, rng = [tiny.machine.virtio[slot - 1].msix.vectors[0] for slot in (DISK, RNG)]
        tiny.machine.start()
        deadline = time.monotonic() + patience(10)
        while tiny.machine.memory.read(READY_GPA, 2) != b"\1\0" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (disk.unmasked, rng.unmasked) == (False, True)
        assert len(lines.having("an MSI vector stays masked")) == 1
        tiny.machine.memory.write(GO_GPA, b"\1\0")
        while tiny.machine.vcpus[0].loop.running and time.monotonic() < deadline:
            time.sleep(0.01)
        assert disk.unmasked
        assert tiny.results(program)[kept] == high


class Broken:
    """A device with a bug."""

    name = "broken"

    def read(self, offset, size):
        raise RuntimeError("a read that fails")

    def write(self, offset, value, size):
        return {}["a write that fails"]


def test_a_device_that_raises_does_not_end_the_guest(tmp_path):
    program = Program()
    for _ in range(30):
        program.read_port(PORT, 2)
        program.out(PORT, 1, 2)
    with TinyMachine(tmp_path, program.power_off()) as tiny, log_lines() as lines:
        tiny.machine.pio.attach(PORT, 2, Broken(), "broken device")
        outcome = tiny.run()
        assert outcome.kind == "shutdown", outcome.report
        assert tiny.results(program) == [0xFFFF] * 30
    assert len(lines.having("Traceback")) == 2
    assert len(lines.records) < 30


@pytest.mark.parametrize("way", ["register", "configuration space"])
def test_a_virtio_device_that_raises_needs_a_reset(tmp_path, monkeypatch, way):
    with TinyMachine(tmp_path, b"\xf4") as tiny, log_lines() as lines:
        bars = low_bars(tiny)
        function = tiny.machine.virtio[DISK - 1]

        def fail(*arguments):
            raise RuntimeError("a bug")

        program = activate(Program().write(bars[DISK] + CONFIG_VECTOR, 0, 2), bars[DISK])
        if way == "register":
            monkeypatch.setattr(function.device, "read_config", fail)
            ones = program.read(bars[DISK] + 0x4000, 4)
        else:
            monkeypatch.setattr(function, "config_read", fail)
            ones = cf8(program, DISK, 0x10)  # a BAR, which is read in Python
        state = program.read(bars[DISK] + COMMON_STATUS, 1)
        program.write(bars[DISK] + COMMON_STATUS, 0, 1)
        after = program.read(bars[DISK] + COMMON_STATUS, 1)
        tiny.load(program.power_off())
        outcome = tiny.run()
        assert outcome.kind == "shutdown", outcome.report
        found = tiny.results(program)
        assert (found[ones], found[state], found[after]) == (0xFFFFFFFF, WORKING | NEEDS_RESET, 0)
        assert len(lines.having("Traceback")) == 1
