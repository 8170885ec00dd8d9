"""Exits of real guests in the trace: each one, with its time, its data and its name."""

from __future__ import annotations

import time

import numpy as np
import pytest

import vmm
from tests.support.elf_builder import build_elf
from tests.support.guest_asm import Program
from tests.support.speed import patience
from tests.support.tiny_machine import TinyMachine
from tests.support.two_vcpus import AP_CODE, RealMode, loop, wake_others
from vmm._native.kvm.tracering import IOCTL_RIP
from vmm.debug.trace import Trace
from vmm.layout import ECAM_GPA

IO, MMIO, SIGNAL = 2, 6, 10
NOBODY_GPA = 0xD0000000
ENDLESS = Program().raw("66bafd03 ec ebfd")  # mov dx, LSR; in al, dx; for ever


def wait_for(condition) -> None:
    deadline = time.monotonic() + patience(10)
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def traced(tmp_path, program: Program, **how):
    with TinyMachine(tmp_path, program.power_off()) as tiny:
        trace = Trace(tiny.machine)
        with trace.start(**how):
            assert tiny.run().kind == "shutdown"
        return trace, trace.numpy(), tiny.machine.exits()


def test_every_exit_of_a_known_program(tmp_path):
    program = Program().out(0x3F8, 0x41)
    program.read_port(0x3FD)
    program.out(0x1234, 0xBEEF, 2)
    program.write(NOBODY_GPA, 0x12345678)
    program.read(NOBODY_GPA, 2)
    program.read(ECAM_GPA + (2 << 15))
    trace, records, counts = traced(tmp_path, program)
    assert [
        (int(r["reason"]), int(r["address"]), int(r["size"]), bool(r["is_write"]), int(r["data"]))
        for r in records
    ] == [
        (IO, 0x3F8, 1, True, 0x41),
        (IO, 0x3FD, 1, False, 0x60),
        (IO, 0x1234, 2, True, 0xBEEF),
        (MMIO, NOBODY_GPA, 4, True, 0x12345678),
        (MMIO, NOBODY_GPA, 2, False, 0xFFFF),
        (MMIO, ECAM_GPA + (2 << 15), 4, False, 0x10421AF4),
        (IO, 0x600, 1, True, 0x34),
    ]
    assert list(trace.pandas()["exit"]) == [
        "COM1 THR", "COM1 LSR", "port 0x1234", f"MMIO {NOBODY_GPA:#x}", f"MMIO {NOBODY_GPA:#x}",
        "ECAM 00:02.0", "ACPI sleep control",
    ]  # fmt: skip
    assert len(records) == sum(counts.values())
    assert (records["count"] == 1).all()
    assert (records["flags"] == 0).all()
    assert (records["rip"] == 0).all()


def test_times_follow_each_other(tmp_path):
    program = loop(Program(), Program().out(0x1234, 1), 1000)
    started = time.monotonic()
    trace, records, _ = traced(tmp_path, program)
    elapsed = time.monotonic() - started
    assert (records["entry_tsc"] < records["exit_tsc"]).all()
    assert (records["exit_tsc"] < records["done_tsc"]).all()
    # The next KVM_RUN begins where the last exit was done, but for a few instructions.
    assert (records["entry_tsc"][1:] >= records["done_tsc"][:-1]).all()
    inside = (records["guest_ns"].sum() + records["vmm_ns"].sum()) / 1e9
    seconds = trace.summary().seconds
    assert 0 < inside <= seconds < elapsed
    assert inside > 0.5 * seconds


@pytest.mark.parametrize("mode", ["KVM_CAP_SYNC_REGS", "KVM_GET_REGS"])
def test_rip_is_the_instruction_of_the_exit(tmp_path, monkeypatch, mode):
    if mode == "KVM_GET_REGS":
        monkeypatch.setattr(Trace, "_rip_mode", lambda self: IOCTL_RIP)
    program = loop(Program(), Program().out(0x1234, 1), 5)
    _, records, _ = traced(tmp_path, program, rip=True)
    at = records["rip"][records["address"] == 0x1234].tolist()
    assert len(at) == 5
    assert len(set(at)) == 1
    # `out dx, al` is the third instruction of the loop, behind cli and four movs.
    prologue = 6 + 5 + 4 + 5
    assert at[0] - 0x100000 in (prologue, prologue + 1)


def test_a_string_of_bytes_counts_its_accesses(tmp_path):
    _, records, _ = traced(tmp_path, Program().out_string(0x3F8, b"hello"))
    some = records[records["address"] == 0x3F8]
    assert some["count"].sum() == 5
    assert some["data"][-1] == ord("o")


def test_what_finds_no_room_is_counted(tmp_path):
    program = loop(Program(), Program().out(0x1234, 1), 100)
    trace, records, counts = traced(tmp_path, program, size=16, drain_ms=0)
    assert len(records) == 16
    assert trace.dropped == trace.dropped_by_vcpu[0] == counts["io"] - 16
    # The oldest are kept.
    assert (records["address"] == 0x1234).all()


def test_a_small_ring_that_is_emptied_loses_little_and_says_what(tmp_path):
    program = loop(Program(), Program().out(0x1234, 1), 20_000)
    trace, records, counts = traced(tmp_path, program, size=256, drain_ms=1)
    assert len(records) + trace.dropped == counts["io"]
    assert len(records) > 256


def test_start_and_stop_while_it_runs(tmp_path):
    with TinyMachine(tmp_path, bytes(ENDLESS.code)) as tiny:
        trace = Trace(tiny.machine)
        tiny.machine.start()
        wait_for(lambda: tiny.machine.exits().get("io", 0) > 100)
        assert len(trace) == 0
        for _ in range(50):
            before = len(trace)
            trace.start(size=1024)
            wait_for(lambda before=before: len(trace) > before + 10)
            trace.stop()
            held = len(trace)
            exits = tiny.machine.exits()["io"]
            wait_for(lambda exits=exits: tiny.machine.exits()["io"] > exits + 10)
            assert len(trace) == held
        tiny.machine.stop_vcpus()
    ports = trace.numpy()["address"]
    assert set(ports.tolist()) <= {0x3FD, 0}


def test_a_halted_vcpu_is_traced_from_start_on(tmp_path):
    with TinyMachine(tmp_path, bytes(Program().raw("f4 ebfd").code)) as tiny:
        trace = Trace(tiny.machine)
        tiny.machine.start()
        time.sleep(0.05)
        with trace:
            time.sleep(0.05)
            wait_for(lambda: tiny.machine.vcpus[0].place() is not None)
            wait_for(lambda: len(trace) > 0)
        tiny.machine.stop_vcpus()
    assert trace.numpy()["reason"].tolist()[0] == SIGNAL
    assert trace.summary()["signal"].count >= 1


def test_a_pause_is_in_neither_time(tmp_path):
    with TinyMachine(tmp_path, bytes(ENDLESS.code)) as tiny:
        trace = Trace(tiny.machine).start()
        tiny.machine.start()
        vcpu_loop = tiny.machine.vcpus[0].loop
        wait_for(lambda: len(trace) > 100)
        assert vcpu_loop.pause(int(1000 * patience(5)))
        time.sleep(0.3)
        vcpu_loop.resume()
        held = len(trace)
        wait_for(lambda: len(trace) > held + 100)
        trace.stop()
        tiny.machine.stop_vcpus()
    records = trace.numpy()
    gaps = records["entry_tsc"][1:].astype("i8") - records["done_tsc"][:-1].astype("i8")
    assert gaps.max() / trace.clock.hz > 0.29
    assert records["reason"][int(np.argmax(gaps))] == SIGNAL
    assert (records["guest_ns"].max(), records["vmm_ns"].max()) < (250e6, 250e6)


def test_two_vcpus_have_a_ring_each(tmp_path):
    with TinyMachine(tmp_path, b"\xf4", CPU_COUNT=2) as tiny:
        program = loop(wake_others(Program()), Program().out(0x1234, 1), 2000)
        tiny.load(program.power_off())
        tiny.machine.memory.write(AP_CODE, RealMode().out(0x4321, 2, 1).for_ever())
        trace = Trace(tiny.machine)
        with trace:
            assert tiny.run(60).kind == "shutdown"
            tiny.machine.stop_vcpus()
    records = trace.numpy()
    assert set(records[records["address"] == 0x1234]["vcpu"]) == {0}
    assert (records["address"] == 0x1234).sum() == 2000
    assert set(records[records["address"] == 0x4321]["vcpu"]) == {1}


def test_a_trace_outlives_its_machine(tmp_path):
    with TinyMachine(tmp_path, Program().out(0x3F8, 0x41).power_off()) as tiny:
        trace = Trace(tiny.machine).start()
        assert tiny.run().kind == "shutdown"
    trace.stop()
    assert trace.summary()["COM1 THR"].count == 1


@pytest.mark.parametrize("cpus", [1, 2])
def test_a_guest_has_a_trace(tmp_path, cpus):
    program = loop(Program(), Program().out(0x1234, 1), 100).out(0x3F8, 0x41)
    (tmp_path / "guest.elf").write_bytes(build_elf(program.power_off()))
    with vmm.Guest(kernel=tmp_path / "guest.elf", memory="16M", cpu_count=cpus) as guest:
        with guest.trace.start(rip=True):
            assert guest.run(seconds=patience(10)).kind == "ended"
        assert guest.trace.summary()["port 0x1234"].count == 100
        # The exit that ended it is the last one.
        frame = guest.trace.pandas()
        assert frame[frame["vcpu"] == 0]["exit"].iloc[-1] == "ACPI sleep control"
        assert guest.stats().total["exits"] > 100
        assert "guest.elf" in repr(guest.trace)


def test_a_guest_that_is_closed_takes_its_trace_along(tmp_path):
    (tmp_path / "guest.elf").write_bytes(build_elf(bytes(ENDLESS.code)))
    with vmm.Guest(kernel=tmp_path / "guest.elf", memory="16M") as guest:
        trace = guest.trace.start()
        assert guest.run(seconds=0.2).kind == "timeout"
        assert trace.on
    assert not trace.on
    assert trace.summary()["COM1 LSR"].count > 10


def test_a_trace_started_while_a_guest_runs_in_the_background(tmp_path):
    (tmp_path / "guest.elf").write_bytes(build_elf(bytes(ENDLESS.code)))
    with vmm.Guest(kernel=tmp_path / "guest.elf", memory="16M") as guest:
        guest.start()
        for _ in range(20):
            before = len(guest.trace)
            with guest.trace:
                wait_for(lambda before=before: len(guest.trace) > before + 10)
        assert guest.running
        assert guest.pause().kind == "paused"
