"""Writes of the address of configuration space that KVM keeps back for the next exit."""

from __future__ import annotations

import errno

import pytest

from tests.support.guest_asm import Program
from tests.support.tiny_machine import TinyMachine
from tests.support.two_vcpus import CONFIG_ADDRESS, CONFIG_DATA, CONFIG_ENABLE, RealMode, loop, race
from vmm.run.runner import Runner
from vmm.vm import CAP_COALESCED_PIO

BRIDGE, CONSOLE = 0x0D578086, 0x10431AF4
# More than the kernel's ring has room for (KVM_COALESCED_MMIO_MAX of 4 KiB: 170).
MANY = 400


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine that its runner lets run, as a service's does."""

    def make(**settings):
        tiny = TinyMachine(tmp_path, b"\xf4", **settings)
        start = tiny.machine.start
        monkeypatch.setattr(tiny.machine, "start", lambda: letting(tiny, start))
        return tiny

    def letting(tiny, start):
        monkeypatch.setattr(tiny.machine, "start", start)
        Runner().start(tiny.machine, lambda: None)
        if not tiny.machine.pio.ring_offset:
            pytest.skip("this KVM keeps no port writes back (KVM_CAP_COALESCED_PIO)")

    return make


def select(program: Program, slot: int, register: int = 0) -> Program:
    return program.out(CONFIG_ADDRESS, CONFIG_ENABLE | slot << 11 | register, 4)


def test_the_address_comes_with_the_access(machine):
    program = Program()
    for slot in (0, 1, 31, 0):
        select(program, slot).read_port(CONFIG_DATA, 4)
    # In parts, and read back.
    select(program, 0)
    program.out(CONFIG_ADDRESS + 1, 1 << 3)
    program.read_port(CONFIG_ADDRESS, 4)
    program.read_port(CONFIG_DATA, 4)
    # The byte that is written goes where the newest address says, and not where an older one did.
    select(program, 0, 0x3C)
    select(program, 1, 0x3C)
    program.out(CONFIG_DATA, 0x5A)
    program.read_port(CONFIG_DATA)
    select(program, 0, 0x3C)
    program.read_port(CONFIG_DATA)
    with machine() as tiny:
        tiny.load(program.power_off())
        assert tiny.run().kind == "shutdown"
        assert tiny.results(program) == [
            BRIDGE, CONSOLE, 0xFFFFFFFF, BRIDGE, CONFIG_ENABLE | 1 << 11, CONSOLE, 0x5A, 0,
        ]  # fmt: skip
        # Each read, the write of data, and the end.
        assert tiny.machine.exits() == {"io": program.reads + 2}


def test_more_than_the_ring_holds(machine):
    body = Program()
    select(body, 5)
    program = loop(Program(), body, MANY)
    select(program, 1)
    program.read_port(CONFIG_ADDRESS, 4)
    program.read_port(CONFIG_DATA, 4)
    with machine() as tiny:
        tiny.load(program.power_off())
        assert tiny.run().kind == "shutdown"
        assert tiny.results(program) == [CONFIG_ENABLE | 1 << 11, CONSOLE]
        assert 3 < tiny.machine.exits()["io"] < MANY / 20


def test_another_vcpu_that_writes_without_end_keeps_nobody(machine):
    with machine(CPU_COUNT=2) as tiny:
        first = Program()
        select(first, 0).read_port(CONFIG_DATA, 4)
        second = RealMode().out(CONFIG_ADDRESS, CONFIG_ENABLE | 1 << 11, 4).for_ever()
        assert race(tiny, first, second, 300).kind == "shutdown"
        assert tiny.results(first)[0] in (BRIDGE, CONSOLE)


class Unable:
    """In place of /dev/kvm or of the VM: one that keeps nothing, or is not allowed to."""

    def __init__(self, real):
        self._real = real

    def __getattr__(self, name):
        return getattr(self._real, name)

    def check_extension(self, capability):
        return 0 if capability == CAP_COALESCED_PIO else self._real.check_extension(capability)

    def register_coalesced_mmio(self, address, size, pio):
        raise OSError(errno.EPERM, "refused")


@pytest.mark.parametrize("part", ["kvm", "fd"])
def test_without_it_each_is_an_exit(tmp_path, monkeypatch, part):
    program = Program()
    select(program, 1).read_port(CONFIG_DATA, 4)
    with TinyMachine(tmp_path, program.power_off()) as tiny:
        vm = tiny.machine.vm
        with monkeypatch.context() as patch:
            patch.setattr(vm, part, Unable(getattr(vm, part)))
            vm.keep_writes(tiny.machine.pio, CONFIG_ADDRESS, 4)
        assert tiny.run().kind == "shutdown"
        assert tiny.results(program) == [CONSOLE]
        assert tiny.machine.exits() == {"io": 3}


def test_a_scripts_guest_shows_every_write(tmp_path):
    program = Program()
    select(program, 0).read_port(CONFIG_DATA, 4)
    with TinyMachine(tmp_path, program.power_off()) as tiny:
        assert tiny.run().kind == "shutdown"
        assert tiny.machine.exits() == {"io": 3}
