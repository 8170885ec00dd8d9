"""Hits in vain never come up to Python: conditions on registers, with each kind of breakpoint."""

from __future__ import annotations

import threading

import pytest

import vmm
from tests.support.elf_builder import LOAD_GPA
from tests.support.guest_asm import Program
from tests.support.speed import patience
from tests.support.tiny_guest import COUNT, JUMP, LOOP, tiny_guest
from tests.support.two_vcpus import AP_CODE, wake_others
from vmm._native.kvm import bus
from vmm.debug.abilities import ABILITIES
from vmm.debug.runcontrol import RunControl


@pytest.fixture
def asked(monkeypatch):
    """The vCPUs whose hits came to Python, in order."""
    seen = []
    hit = RunControl._hit

    def counted(control, cpu, *more):
        seen.append(cpu.index)
        return hit(control, cpu, *more)

    monkeypatch.setattr(RunControl, "_hit", counted)
    return seen


def test_python_hears_of_what_holds_only(tmp_path, kind, asked):
    with tiny_guest(tmp_path, COUNT) as guest:
        point = guest.breakpoint(
            LOOP, hardware=kind == "hardware", condition=f"rax % 100 == 7 and rip == {LOOP}"
        )
        for n in range(3):
            stop = guest.run(seconds=patience(30))
            assert (stop.kind, stop.address, stop.where) == ("breakpoint", LOOP, point)
            assert guest.cpus[0].regs.rax == 100 * n + 7
            assert guest.memory.read(LOAD_GPA, len(COUNT)) == COUNT
        assert (point.hits, point.passed, len(asked)) == (3, 7 + 99 + 99, 3)
        assert "3 hits, 205 passed" in repr(point)


def test_all_conditions_at_one_place_count(tmp_path, kind, asked):
    with tiny_guest(tmp_path, COUNT) as guest:
        hardware = kind == "hardware"
        first = guest.breakpoint(LOOP, hardware=hardware, condition="rax == 5")
        second = guest.breakpoint(LOOP, hardware=hardware, condition="rax == 9")
        third = guest.breakpoint(JUMP, hardware=hardware, condition="rax == 8")
        found = []
        for _ in range(3):
            stop = guest.run(seconds=patience(30))
            found.append((stop.where, guest.cpus[0].regs.rax))
        assert found == [(first, 5), (third, 8), (second, 9)]
        assert (first.passed, second.passed, third.passed) == (9, 9, 8)
        assert len(asked) == 3


def test_a_function_beside_it_is_asked_each_time(tmp_path, kind, asked):
    with tiny_guest(tmp_path, COUNT) as guest:
        hardware = kind == "hardware"
        guest.breakpoint(LOOP, hardware=hardware, condition="rax == 5")
        other = guest.breakpoint(LOOP, hardware=hardware, condition=lambda cpu: cpu.regs.rax == 3)
        assert guest.run(seconds=patience(10)).where is other
        assert (other.hits, other.passed, len(asked)) == (1, 3, 4)


def test_a_condition_can_be_changed(tmp_path, kind):
    with tiny_guest(tmp_path, COUNT) as guest:
        point = guest.breakpoint(LOOP, hardware=kind == "hardware", condition="rax == 7")
        for condition, rax in (
            ("rax == 7", 7), ("rax & 7 == 7", 15), (lambda cpu: cpu.regs.rax == 17, 17), (None, 18),
            ("cr0 & 1 and rax > 20", 21),
        ):  # fmt: skip
            point.condition = condition
            guest.run(seconds=patience(10))
            assert guest.cpus[0].regs.rax == rax
        assert (point.hits, point.passed) == (5, 7 + 7 + 1 + 2)
        with pytest.raises(ValueError, match="'eax' is not possible"):
            point.condition = "eax == 1"


def test_a_division_by_zero_comes_out_and_the_guest_is_intact(tmp_path, kind):
    with tiny_guest(tmp_path, COUNT) as guest:
        point = guest.breakpoint(LOOP, hardware=kind == "hardware", condition="1 // (rax - 4)")
        with pytest.raises(ZeroDivisionError, match=r"condition '1 // \(rax - 4\)'"):
            guest.run(seconds=patience(10))
        assert (guest.cpus[0].address, guest.cpus[0].regs.rax) == (LOOP, 4)
        assert guest.run(seconds=patience(10)).where is point
        assert guest.cpus[0].regs.rax == 5


def test_time_outs_and_pauses_leave_the_guest_whole(tmp_path, kind, asked):
    with tiny_guest(tmp_path, COUNT) as guest:
        point = guest.breakpoint(LOOP, hardware=kind == "hardware", condition="rax == 1 << 40")
        while not point.passed:
            assert guest.run(seconds=0.05).kind == "timeout"
        before = 0
        for _ in range(20):
            assert guest.run(seconds=0.02).kind == "timeout"
            assert guest.memory.read(LOAD_GPA, len(COUNT)) == COUNT
            assert LOOP <= guest.cpus[0].address <= JUMP
            rax = guest.cpus[0].regs.rax
            # One that stood on the point when its time was over goes on behind it.
            assert rax - 25 <= point.passed <= rax + 25
            assert rax > before
            before = rax
        guest.start()
        threading.Event().wait(0.05)
        assert guest.pause().kind == "paused"
        assert guest.cpus[0].regs.rax > before
        assert guest.step().kind == "step"
        assert not asked
        point.condition = None
        assert guest.run(seconds=patience(10)).where is point


def test_an_action_may_write_over_the_code_and_step(tmp_path, kind):
    with tiny_guest(tmp_path, COUNT) as guest:
        point = guest.breakpoint(LOOP, hardware=kind == "hardware", condition="rax & 1 == 0")
        guest.run(seconds=patience(10))
        guest.memory.write(LOOP, bytes.fromhex("83c003"))
        guest.run(seconds=patience(10))
        assert (guest.cpus[0].regs.rax, point.passed) == (6, 1)
        assert guest.memory.read(LOOP, 3) == bytes.fromhex("83c003")


def test_a_restored_guest_has_all_its_breakpoints(tmp_path, kind):
    with tiny_guest(tmp_path, COUNT) as guest:
        snapshot = guest.snapshot()
        hardware = kind == "hardware"
        point = guest.breakpoint(LOOP, hardware=hardware, condition="rax == 20")
        other = guest.breakpoint(JUMP, hardware=hardware, condition="rax == 15")
        for _ in range(3):
            assert guest.run(seconds=patience(10)).where is other
            assert guest.run(seconds=patience(10)).where is point
            guest.restore(snapshot)
            assert guest.memory.read(LOAD_GPA, len(COUNT)) == COUNT
        del snapshot
        # Both have passed in each round.
        assert (point.hits, point.passed, other.hits, other.passed) == (3, 60, 3, 57)


def both_at(program: Program) -> bytes:
    """Two vCPUs come to the same code: the second one in real mode, where it means the same."""
    program = wake_others(program)
    program.code += b"\xe9" + (AP_CODE + 0x100 - LOAD_GPA - len(program.code) - 5).to_bytes(
        4, "little", signed=True
    )
    return bytes(program.code)


def test_two_vcpus(tmp_path, kind, asked):
    with tiny_guest(tmp_path, both_at(Program()), cpu_count=2) as guest:
        guest.memory.write(AP_CODE, b"\xe9\xfd\x00")
        # inc ecx (inc cx); jmp back
        guest.memory.write(AP_CODE + 0x100, bytes.fromhex("ffc1 ebfc"))
        point = guest.breakpoint(
            AP_CODE + 0x100, hardware=kind == "hardware", condition="rcx & 0xffff == 500"
        )
        seen = set()
        for _ in range(20):
            stop = guest.run(seconds=patience(60))
            assert stop.kind == "breakpoint"
            seen.add(stop.cpu)
            assert guest.cpus[stop.cpu].regs.rcx & 0xFFFF == 500
            if seen == {0, 1}:
                break
        assert seen == {0, 1}
        assert point.passed >= 1000
        if kind == "hardware":
            assert len(asked) < 50


def test_a_nop_at_an_entry_is_passed_beside_others(tmp_path, asked):
    if not ABILITIES.port:
        pytest.skip("this KVM does not do port breakpoints")
    with tiny_guest(tmp_path, both_at(Program()), cpu_count=2) as guest:
        guest.memory.write(AP_CODE, b"\xf4")
        # nop (5 bytes, as tracers leave it); inc ecx; jmp back
        guest.memory.write(AP_CODE + 0x100, bytes.fromhex("0f1f440000 ffc1 ebf7"))
        point = guest.breakpoint(AP_CODE + 0x100, hardware=False, condition="rcx == 3000")
        if point.kind == "port":
            guest.run(seconds=patience(60))
            assert guest.cpus[0].regs.rcx == 3000
            assert (point.hits, len(asked)) == (1, 1)


@pytest.mark.parametrize(
    "nop", ["0f1f00", "0f1f4000", "0f1f440000", "660f1f440000", "0f1f8000000000"]
)
def test_nops_of_any_length(tmp_path, monkeypatch, nop):
    if not ABILITIES.port:
        pytest.skip("this KVM does not do port breakpoints")
    code = bytes.fromhex(nop)
    loop = code + bytes.fromhex("83c001 eb") + bytes([256 - len(code) - 5])
    with tiny_guest(tmp_path, COUNT[:5] + loop) as guest:
        monkeypatch.setattr(type(guest.points), "_port_fits", lambda *_: True)
        point = guest.breakpoint(LOOP, hardware=False, condition="rax == 50")
        if point.kind != "port":
            pytest.skip("int3 works here")
        guest.run(seconds=patience(10))
        assert (guest.cpus[0].address, guest.cpus[0].regs.rax, point.passed) == (LOOP, 50, 50)


def test_watchpoints(tmp_path, asked):
    if not ABILITIES.watch:
        pytest.skip("this KVM does not do watchpoints")
    # for ever: inc eax; mov [0x300000], eax
    code = bytes.fromhex("b800000000 ffc0 a3 00003000 ebf7")
    with tiny_guest(tmp_path, code) as guest:
        point = guest.watch(0x300000, 4, condition="rax == 1000")
        assert guest.run(seconds=patience(10)).kind == "watch"
        assert (guest.cpus[0].regs.rax, point.hits, point.passed, len(asked)) == (1000, 1, 999, 1)


def test_an_action_still_stops_by_itself(tmp_path, kind):
    with tiny_guest(tmp_path, COUNT) as guest:
        seen = []

        @guest.breakpoint(LOOP, hardware=kind == "hardware", condition="rax % 10 == 0")
        def tenth(cpu):
            seen.append(cpu.regs.rax)
            return vmm.STOP if len(seen) == 5 else None

        guest.run(seconds=patience(30))
        assert seen == [0, 10, 20, 30, 40]
        assert (tenth.hits, tenth.passed) == (5, 36)


def test_int3_as_if_this_kvm_reported_it(tmp_path, monkeypatch):
    monkeypatch.setitem(ABILITIES.__dict__, "int3", True)
    with tiny_guest(tmp_path, COUNT) as guest:
        point = guest.breakpoint(LOOP, hardware=False, condition="rax == 3")
        assert point.kind == "int3"
        guest.points.arm()
        cpu, ram = guest.cpus[0], guest.machine.memory
        (gate,) = guest.points._gates._gates

        def hit(rax: int) -> int:
            cpu.regs.update({"rip": LOOP, "rax": rax})
            cpu.flush()
            return gate.decide(cpu.vcpu.fd, LOOP, 3)

        assert hit(3) == bus.STOP
        assert (ram.read(LOOP, 1), point.passed) == (b"\xcc", 0)
        assert hit(5) == bus.CONTINUE
        # Out for one step, of which the gate hears from the vCPU's own loop.
        assert (ram.read(LOOP, 3), point.passed) == (COUNT[5:8], 1)
        cpu.vcpu.loop.run_here(50_000_000)
        assert ram.read(LOOP, 1) == b"\xcc"
        assert cpu.regs.rax >= 6
        # Given up in the middle of a step, by a kick.
        assert hit(5) == bus.CONTINUE
        cpu.vcpu.loop.kick()
        assert cpu.vcpu.loop.run_here() == bus.KICKED
        assert ram.read(LOOP, 1) == b"\xcc"
        # The guest's own int3 is nobody's.
        cpu.regs.rip = JUMP
        cpu.flush()
        assert gate.decide(cpu.vcpu.fd, JUMP, 3) == bus.STOP
        gate.active = False
        assert hit(5) == bus.STOP


def test_a_debug_register_as_if_kvm_reported_a_watchpoint(tmp_path):
    if not ABILITIES.hardware:
        pytest.skip("this KVM does not do hardware breakpoints")
    with tiny_guest(tmp_path, COUNT) as guest:
        cpu = guest.cpus[0]
        point = guest.breakpoint(LOOP, hardware=True, condition="rax == 3")
        # As a watchpoint has it: the access is done, and dr6 tells which one.
        point.size = 4
        guest.points.arm()
        (gate,) = guest.points._gates._gates
        cpu.regs.update({"rip": JUMP, "rax": 5})
        cpu.flush()
        assert gate.decide(cpu.vcpu.fd, JUMP, 1, dr6=1) == bus.CONTINUE
        assert point.passed == 1
        assert gate.decide(cpu.vcpu.fd, JUMP, 1, dr6=2) == bus.STOP
        cpu.regs.rax = 3
        cpu.flush()
        assert gate.decide(cpu.vcpu.fd, JUMP, 1, dr6=1) == bus.STOP
        point.size = 0
