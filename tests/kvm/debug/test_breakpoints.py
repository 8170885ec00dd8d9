"""Breakpoints of each kind that this KVM can do, with one vCPU and with two."""

from __future__ import annotations

import time

import pytest

import vmm
from tests.support.checked_code import WORK
from tests.support.elf_builder import LOAD_GPA
from tests.support.guest_asm import Program
from tests.support.speed import patience
from tests.support.tiny_guest import tiny_guest
from tests.support.two_vcpus import both_at
from vmm.debug import breakpoints
from vmm.debug.abilities import ABILITIES
from vmm.errors import HostError

# mov eax, 0; then for ever: inc eax; jmp back
COUNT = bytes.fromhex("b800000000 83c001 ebfb")
LOOP = LOAD_GPA + 5
JUMP = LOAD_GPA + 8


def test_each_hit_is_before_the_instruction(tmp_path, kind):
    with tiny_guest(tmp_path, COUNT) as guest:
        point = guest.breakpoint(LOOP, hardware=kind == "hardware")
        assert point.kind == kind
        for hit in range(5):
            stop = guest.run(seconds=patience(10))
            assert (stop.kind, stop.address, stop.where) == ("breakpoint", LOOP, point)
            assert guest.cpus[0].regs.rax == hit
        assert point.hits == 5
        point.enabled = False
        assert guest.run(seconds=0.05).kind == "timeout"
        point.enabled = True
        assert guest.run(seconds=patience(10)).kind == "breakpoint"
        point.remove()
        point.remove()
        assert guest.run(seconds=0.05).kind == "timeout"


def test_actions_go_on_until_one_says_stop(tmp_path, kind):
    with tiny_guest(tmp_path, COUNT) as guest:
        seen = []

        @guest.breakpoint(LOOP, hardware=kind == "hardware")
        def looped(cpu):
            seen.append(cpu.regs.rax)
            return vmm.STOP if len(seen) == 20 else None

        stop = guest.run(seconds=patience(30))
        assert (stop.kind, seen) == ("breakpoint", list(range(20)))
        assert looped.hits == 20


def test_conditions(tmp_path, kind):
    with tiny_guest(tmp_path, COUNT) as guest:
        point = guest.breakpoint(LOOP, hardware=kind == "hardware", condition="rax == 7")
        guest.run(seconds=patience(10))
        assert (guest.cpus[0].regs.rax, point.hits) == (7, 1)
        point.condition = lambda cpu: cpu.regs.rax % 5 == 0
        guest.run(seconds=patience(10))
        assert guest.cpus[0].regs.rax == 10


def test_an_exception_comes_out_and_the_guest_is_intact(tmp_path, kind):
    with tiny_guest(tmp_path, COUNT) as guest:

        @guest.breakpoint(LOOP, hardware=kind == "hardware")
        def looped(cpu):
            raise ZeroDivisionError("in an action")

        for rax in range(3):
            with pytest.raises(ZeroDivisionError, match="in an action"):
                guest.run(seconds=patience(10))
            assert (guest.cpus[0].address, guest.cpus[0].regs.rax) == (LOOP, rax)


def test_an_action_cannot_run_the_guest_itself(tmp_path):
    with tiny_guest(tmp_path, COUNT) as guest:
        guest.breakpoint(LOOP, lambda cpu: guest.run())
        with pytest.raises(RuntimeError, match="cannot let it run"):
            guest.run(seconds=patience(10))


def test_memory_never_shows_the_patches(tmp_path):
    with tiny_guest(tmp_path, COUNT) as guest:
        point = guest.breakpoint(LOOP, hardware=False)
        seen = []
        point.action = lambda cpu: seen.append(guest.memory.read(LOAD_GPA, len(COUNT))) or vmm.STOP
        guest.run(seconds=patience(10))
        assert seen == [COUNT]
        array = guest.memory.numpy(LOAD_GPA, len(COUNT))
        assert bytes(array) == COUNT
        guest.run(seconds=patience(10))
        assert bytes(array) == COUNT
        assert point.hits == 2
        guest.memory.write(LOOP, bytes.fromhex("83c002"))
        guest.run(seconds=patience(10))
        guest.run(seconds=patience(10))
        assert guest.cpus[0].regs.rax == 1 + 2 + 2


def test_code_that_the_guest_rewrites_is_the_guests(tmp_path):
    # Writes `inc eax` three times over the code behind it, then comes there.
    target = LOAD_GPA + 0x40
    code = Program().write(target, 0xC0FFC0FF).write(target + 4, 0xFEEBC0FF)
    code.raw("b800000000").code += b"\xe9" + (target - LOAD_GPA - len(code.code) - 5).to_bytes(
        4, "little"
    )
    code.code += bytes(0x40 - len(code.code)) + b"\x0f\x0b" * 4
    with tiny_guest(tmp_path, bytes(code.code)) as guest:
        early = guest.breakpoint(target, hardware=False)
        assert guest.run(seconds=0.05).kind == "timeout"
        assert early.hits == 0
        assert guest.memory.read(target, 8) == bytes.fromhex("ffc0ffc0ffc0ebfe")
        assert guest.cpus[0].regs.rax == 3
        # From the next run on it stands in the new code.
        guest.run(seconds=0.01)
        guest.cpus[0].regs.rip = target - 5
        guest.memory.write(target - 5, b"\x90" * 5)
        assert guest.run(seconds=patience(10)).where is early
        assert guest.memory.read(target, 8) == bytes.fromhex("ffc0ffc0ffc0ebfe")


def test_two_vcpus_hit_one_at_once(two, kind):
    two.memory.write(WORK, bytes.fromhex("eb00 eb fc"))
    both_at(two, WORK)
    seen = []

    @two.breakpoint(WORK, hardware=kind == "hardware")
    def hit(cpu):
        seen.append(cpu.index)
        return vmm.STOP if {0, 1} <= set(seen) and len(seen) > 20 else None

    assert two.run(seconds=patience(30)).kind == "breakpoint"
    assert hit.hits == len(seen)


def test_another_ones_mode(two):
    """The second vCPU comes to the same code in real mode, where it means the same."""
    two.memory.write(WORK, bytes.fromhex("eb00 eb fc"))
    for cpu in two.cpus:
        cpu.regs.rip = WORK - cpu.sregs.cs["base"]
    seen = []
    two.breakpoint(WORK, lambda cpu: seen.append(cpu.index), hardware=True)
    two.run(until=WORK + 2, seconds=patience(30))
    deadline = time.monotonic() + patience(30)
    while {0, 1} != set(seen) and time.monotonic() < deadline:
        two.run(seconds=0.01)
    assert set(seen) == {0, 1}


def test_they_stay_after_a_restore(tmp_path, software):
    with tiny_guest(tmp_path, COUNT) as guest:
        base = guest.snapshot()
        point = guest.breakpoint(LOOP, hardware=False)
        for _ in range(3):
            for rax in range(3):
                assert guest.run(seconds=patience(10)).where is point
                assert guest.cpus[0].regs.rax == rax
            guest.restore(base)
            assert guest.memory.read(LOAD_GPA, len(COUNT)) == COUNT
        point.remove()
        assert guest.run(seconds=0.05).kind == "timeout"
        assert bytes(guest.memory.numpy(LOAD_GPA, len(COUNT))) == COUNT


def test_ten_thousand_software_breakpoints(tmp_path):
    count = 10_000
    code = b"\x83\xc0\x01" * count + b"\xeb\xfe"
    with tiny_guest(tmp_path, code) as guest:
        points = [
            guest.breakpoint(LOAD_GPA + 3 * n, lambda cpu: None, hardware=False)
            for n in range(count)
        ]
        assert guest.run(until=LOAD_GPA + 3 * count, seconds=patience(60)).kind == "breakpoint"
        assert [point.hits for point in points] == [1] * count
        assert guest.cpus[0].regs.rax == count
        assert guest.memory.read(LOAD_GPA, len(code)) == code
        for point in points:
            point.remove()
        assert bytes(guest.memory.numpy(LOAD_GPA, len(code))) == code


def test_until_an_address(tmp_path):
    with tiny_guest(tmp_path, COUNT) as guest:
        assert guest.run(until=JUMP, seconds=patience(10)).address == JUMP
        assert guest.run(until=LOOP, seconds=patience(10)).address == LOOP
        assert guest.run(until=JUMP + 99, seconds=0.05).kind == "timeout"


def test_no_more_hardware_than_there_is(tmp_path):
    with tiny_guest(tmp_path, COUNT) as guest:
        if not ABILITIES.hardware:
            with pytest.raises(HostError, match="do not hit on this host"):
                guest.breakpoint(LOOP, hardware=True)
            return
        points = [guest.breakpoint(LOAD_GPA + n) for n in range(breakpoints.HARDWARE_MAX)]
        assert {point.kind for point in points} == {"hardware"}
        assert guest.breakpoint(LOOP + 50).kind != "hardware"
        with pytest.raises(HostError, match="all 4 hardware breakpoints"):
            guest.breakpoint(LOOP, hardware=True)
        points[0].remove()
        assert guest.breakpoint(LOOP, hardware=True).kind == "hardware"


def test_watchpoints_where_they_work_and_an_error_where_not(tmp_path):
    code = Program().write(0x300000, 5, 4).write(0x300000, 5, 4).raw("ebfe").code
    with tiny_guest(tmp_path, bytes(code)) as guest:
        if not (ABILITIES.watch or ABILITIES.page):
            with pytest.raises(HostError, match="write breakpoints do not hit"):
                guest.watch(0x300000, 4)
            return
        point = guest.watch(0x300000, 4)
        assert guest.run(seconds=patience(10)).kind == "watch"
        assert guest.run(seconds=patience(10)).kind == "watch"
        assert guest.run(seconds=0.05).kind == "timeout"
        assert point.hits == 2


def test_the_guests_own_write_to_that_port_is_no_hit(tmp_path):
    program = Program()
    for port in range(0xE0, 0xFF):
        program.out(port, 1)
    with tiny_guest(tmp_path, program.power_off()) as guest:
        point = guest.breakpoint(LOAD_GPA + 6, hardware=False)
        assert guest.run(seconds=patience(10)).where is point
        assert guest.run(seconds=patience(10)).kind == "ended"
        assert point.hits == 1


def stop_port(guest: vmm.Guest) -> int:
    return next(at for at, _, name in guest.machine.pio.ranges() if name == "breakpoint port")


def test_one_over_the_guests_own_write_to_that_port(tmp_path):
    with tiny_guest(tmp_path, COUNT) as guest:
        code = b"\xe6" + bytes([stop_port(guest)]) + b"\xff\xc0\xeb\xfa"
        guest.memory.write(LOAD_GPA, code)
        point = guest.breakpoint(LOAD_GPA, hardware=False)
        for rax in range(3):
            assert guest.run(seconds=patience(10)).where is point
            assert guest.cpus[0].regs.rax == rax


def test_a_disabled_one_under_the_feet(tmp_path, kind):
    with tiny_guest(tmp_path, COUNT) as guest:
        point = guest.breakpoint(LOOP, hardware=kind == "hardware")
        guest.run(seconds=patience(10))
        point.enabled = False
        assert guest.step().address == JUMP
        assert guest.step().address == LOOP
        assert guest.cpus[0].regs.rax == 1


def test_a_range_is_watched_by_its_pages(tmp_path):
    code = Program()
    for gpa in (0x300000, 0x300FFE, 0x301000, 0x301064, 0x302000, 0x303000):
        code.write(gpa, 0x01020304, 4)
    with tiny_guest(tmp_path, bytes(code.raw("ebfe").code)) as guest:
        if not ABILITIES.page:
            with pytest.raises(HostError, match="this KVM reports no writes"):
                guest.watch(0x300FFF, 0x1001)
            return
        point = guest.watch(0x300FFF, 0x1001)
        assert point.kind == "page"
        seen = []
        for _ in range(3):
            stop = guest.run(seconds=patience(10))
            seen.append((stop.kind, stop.where is point))
        assert seen == [("watch", True)] * 3
        assert point.hits == 3
        point.remove()
        assert guest.run(seconds=0.05).kind == "timeout"
        assert guest.memory.read(0x300FFE, 2) == b"\x04\x03"
        for gpa in (0x301000, 0x301064, 0x302000, 0x303000):
            assert guest.memory.read(gpa, 4) == b"\x04\x03\x02\x01"


def _goes_on(count, guest):
    """It becomes more, the guest running all the time."""
    before, deadline = count(), time.monotonic() + patience(10)
    while count() == before:
        assert guest.running
        assert time.monotonic() < deadline, "no hit"
        time.sleep(0.001)


@pytest.mark.parametrize("cpus", [1, 2])
def test_a_guest_that_runs_in_the_background_hears_of_changes(tmp_path, kind, cpus):
    with tiny_guest(tmp_path, COUNT, cpu_count=cpus) as guest:
        guest.start()
        seen = []
        point = guest.breakpoint(
            LOOP, lambda cpu: seen.append(cpu.regs.rax), hardware=kind == "hardware"
        )
        assert point.kind == kind
        _goes_on(lambda: len(seen), guest)
        point.enabled = False
        still = len(seen)
        time.sleep(0.02)
        assert len(seen) == still
        point.enabled = True
        _goes_on(lambda: len(seen), guest)
        point.remove()
        still = len(seen)
        time.sleep(0.02)
        assert (len(seen), guest.running) == (still, True)
        last = guest.breakpoint(JUMP, hardware=kind == "hardware")
        stop = guest.wait(patience(10))
        assert (stop.kind, stop.where, guest.running) == ("breakpoint", last, False)


def test_what_cannot_be_made_of_a_running_guest_is_told_to_who_asks(tmp_path, monkeypatch):
    with tiny_guest(tmp_path, COUNT) as guest:
        guest.start()
        for ability in ("port", "int3", "step"):
            monkeypatch.setitem(ABILITIES.__dict__, ability, False)
        with pytest.raises(HostError, match="no breakpoint is possible"):
            guest.breakpoint(LOOP, hardware=False)
        assert guest.running
