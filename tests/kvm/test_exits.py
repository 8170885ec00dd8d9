"""One exit kind a test: what the guest does, and what the machine makes of it."""

from __future__ import annotations

import time

import pytest

from tests.support.guest_asm import RESULT_GPA, Program
from tests.support.speed import patience
from tests.support.tiny_machine import TinyMachine, results


@pytest.mark.parametrize(("size", "ones"), [(1, 0xFF), (2, 0xFFFF), (4, 0xFFFFFFFF)])
def test_ports_nobody_decodes_read_ones(tmp_path, size, ones):
    program = Program()
    program.read_port(0x1234, size)
    program.out(0x1234, 0x55, size)
    assert results(tmp_path, program) == [ones]


@pytest.mark.parametrize(("size", "ones"), [(1, 0xFF), (2, 0xFFFF), (4, 0xFFFFFFFF)])
def test_memory_nobody_decodes_reads_ones(tmp_path, size, ones):
    program = Program()
    program.write(0xD0000000, 0, size)
    program.read(0xD0000000, size)
    assert results(tmp_path, program) == [ones]


def test_a_string_of_bytes_in_one_exit(tmp_path):
    program = Program().out_string(0x3F8, b"hello from rep outsb")
    with TinyMachine(tmp_path, program.power_off()) as tiny:
        assert tiny.run().kind == "shutdown"
        counters = tiny.machine.vcpus[0].loop.counters()
        assert tiny.serial == b"hello from rep outsb"
    assert counters["io"] <= 21


@pytest.mark.parametrize(("port", "value"), [(0x600, 0x01), (0x64, 0xFE)])
def test_reset_registers(tmp_path, port, value):
    program = Program().out(port, value).raw("f4")
    with TinyMachine(tmp_path, bytes(program.code)) as tiny:
        outcome = tiny.run()
    assert (outcome.kind, outcome.report) == ("reset", "")


def test_0xcf9_is_not_a_reset_register(tmp_path):
    program = Program().out(0xCF9, 0x06)
    assert results(tmp_path, program) == []


def test_triple_fault_is_a_reset_with_a_report(tmp_path):
    # lidt of an empty table, then an undefined instruction
    program = Program().write(0x1000, 0).write(0x1004, 0).raw("0f011d00100000 0f0b")
    with TinyMachine(tmp_path, bytes(program.code)) as tiny:
        outcome = tiny.run()
    assert outcome.kind == "reset"
    assert "triple-faulted" in outcome.reason
    assert "rip=" in outcome.report


def test_what_kvm_cannot_emulate_is_a_crash_with_registers(tmp_path):
    # fnstenv to memory that nobody decodes
    program = Program().raw("d935000000d0 f4")
    with TinyMachine(tmp_path, bytes(program.code)) as tiny:
        outcome = tiny.run()
    assert outcome.kind == "crash"
    assert "internal error" in outcome.reason
    for word in ("rip=", "cr0=", "code at rip", "last exits"):
        assert word in outcome.report


def test_a_halted_guest_sleeps_and_can_be_stopped(tmp_path):
    program = Program().raw("f4 ebfd")
    with TinyMachine(tmp_path, bytes(program.code)) as tiny:
        tiny.machine.start()
        time.sleep(0.05)
        before = time.thread_time()
        started = time.monotonic()
        tiny.machine.stop_vcpus()
        assert time.monotonic() - started < 2
        assert time.thread_time() - before < 1
        assert not tiny.machine.vcpus[0].loop.running


def test_a_spinning_guest_can_be_stopped(tmp_path):
    with TinyMachine(tmp_path, bytes(Program().raw("ebfe").code)) as tiny:
        tiny.machine.start()
        time.sleep(0.05)
        tiny.machine.stop_vcpus()
        assert not tiny.machine.vcpus[0].loop.running


@pytest.mark.parametrize("count", [1, 2])
def test_no_guest_runs_before_what_comes_first(tmp_path, count):
    """The vCPUs have threads by then, which wait; where it fails they have never run."""
    program = Program().write(RESULT_GPA, 1).raw("ebfe")
    with TinyMachine(tmp_path, bytes(program.code), CPU_COUNT=count) as tiny:
        memory = tiny.machine.memory
        seen = []

        def first() -> None:
            time.sleep(0.1)
            running = [vcpu.loop.running for vcpu in tiny.machine.vcpus]
            seen.append((memory.read(RESULT_GPA, 1), running))

        tiny.machine.start(first)
        assert seen == [(b"\0", [True] * count)]
        deadline = time.monotonic() + patience(5)
        while memory.read(RESULT_GPA, 1) != b"\1":
            assert time.monotonic() < deadline

    with TinyMachine(tmp_path, bytes(program.code), CPU_COUNT=count) as tiny:

        def fail() -> None:
            raise OSError("no filter")

        with pytest.raises(OSError, match="no filter"):
            tiny.machine.start(fail)
        time.sleep(0.1)
        assert tiny.machine.memory.read(RESULT_GPA, 1) == b"\0"


@pytest.mark.parametrize("count", [2, 5, 64])
def test_many_vcpus_are_built_and_stopped(tmp_path, count):
    with TinyMachine(tmp_path, Program().power_off(), CPU_COUNT=count) as tiny:
        assert tiny.run().kind == "shutdown"
        assert len(tiny.machine.vcpus) == count


@pytest.mark.parametrize("memory", ["size=16M,shared=on", "size=16M,shared=off", "size=5G"])
def test_memory_backings(tmp_path, memory):
    program = Program()
    program.write(0x300000, 0xCAFE)
    program.read(0x300000)
    assert results(tmp_path, program, MEMORY_CONFIG=memory) == [0xCAFE]


def test_ten_machines_one_after_the_other(tmp_path):
    for _ in range(10):
        assert results(tmp_path, Program()) == []
