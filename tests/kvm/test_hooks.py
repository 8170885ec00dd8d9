"""Python behind ports, addresses and MSRs of tiny guests: values, stops, failures, removal."""

from __future__ import annotations

import struct
import threading

import pytest

import vmm
from tests.support.guest_asm import Program
from tests.support.speed import patience
from tests.support.tiny_guest import results, tiny_guest
from tests.support.two_vcpus import AP_CODE, RealMode, wake_others
from vmm import layout

SECONDS = patience(20)
PORT = 0x500
GPA = 0xC1000000
MTRR, SYSENTER_CS, MISSING = 0x210, 0x174, 0x12345678


def read_msr(program: Program, index: int) -> int:
    program.raw("b9" + struct.pack("<I", index).hex() + "0f32")
    return program._store()


def write_msr(program: Program, index: int, value: int) -> Program:
    return program.raw(
        "b9" + struct.pack("<I", index).hex() + "b8" + struct.pack("<I", value).hex() + "31d20f30"
    )


def test_accesses_come_with_their_address_size_and_cpu(tmp_path):
    program = Program().out(PORT, 0x11223344, 4).out(PORT + 3, 5)
    program.write(GPA, 0x55, 2)
    word, dword = program.read_port(PORT + 2, 2), program.read(GPA + 4)
    seen = []
    with tiny_guest(tmp_path, program.power_off()) as guest:

        def read(cpu, address, size):
            assert threading.current_thread() is threading.main_thread()
            return (address << 4 | size) & 0xFF if size == 1 else address << 4 & 0xFFFF | size

        def write(cpu, address, value, size):
            seen.append((address, value, size, cpu.regs.rax))

        ports = guest.on_port(PORT, 4, read, write)
        addresses = guest.on_mmio(GPA, 8, read=read, write=write)
        assert guest.run(seconds=SECONDS).kind == "ended"
        assert results(guest, program)[word] == (PORT + 2) << 4 & 0xFFFF | 2
        assert results(guest, program)[dword] == (GPA + 4) << 4 & 0xFFFF | 4
        assert seen == [
            (PORT, 0x11223344, 4, 0x11223344),
            (PORT + 3, 5, 1, 5),
            (GPA, 0x55, 2, 0x55),
        ]
        assert (ports.hits, addresses.hits) == (3, 2)
        assert "port hook at 0x500..0x503, 3 hits" in repr(ports)


@pytest.mark.parametrize("cpus", [1, 2])
def test_stop_leaves_the_vcpu_right_behind_the_access(tmp_path, cpus):
    program = Program().out(PORT, 1)
    behind = layout.HIGH_RAM_GPA + len(program.code)
    value = program.read_port(PORT)
    inside = layout.HIGH_RAM_GPA + len(program.code) - 5
    with tiny_guest(tmp_path, program.power_off(), cpu_count=cpus) as guest:
        hook = guest.on_port(PORT, 1, lambda *_: vmm.STOP, lambda *_: vmm.STOP)
        stop = guest.run(seconds=SECONDS)
        assert (stop.kind, stop.cpu, stop.address, stop.where) == ("hook", 0, behind, hook)
        assert guest.run(seconds=SECONDS).address == inside
        assert guest.cpus[0].regs.rax & 0xFF == 0xFF
        guest.cpus[0].regs.rax = 0x77
        assert guest.run(seconds=SECONDS).kind == "ended"
        assert results(guest, program)[value] == 0x77


@pytest.mark.parametrize("cpus", [1, 2])
def test_an_exception_comes_out_of_run_and_the_guest_goes_on(tmp_path, cpus):
    program = Program()
    first, second = program.read_port(PORT), program.read_port(PORT)
    with tiny_guest(tmp_path, program.power_off(), cpu_count=cpus) as guest:
        answers = iter([KeyError("mine"), 0x21])

        @guest.on_port(PORT)
        def read(cpu, address, size):
            answer = next(answers)
            if isinstance(answer, Exception):
                raise answer
            return answer

        with pytest.raises(KeyError, match="mine"):
            guest.run(seconds=SECONDS)
        assert guest.run(seconds=SECONDS).kind == "ended"
        assert [results(guest, program)[n] for n in (first, second)] == [0xFF, 0x21]


@pytest.mark.parametrize("answer", [None, "7", 256, -129])
def test_a_read_that_gives_no_such_value_says_so(tmp_path, answer):
    program = Program()
    program.read_port(PORT)
    with tiny_guest(tmp_path, program.power_off()) as guest:
        guest.on_port(PORT, 1, read=lambda *_: answer)
        with pytest.raises((TypeError, ValueError), match="<port hook at 0x500.*it gave"):
            guest.run(seconds=SECONDS)


def test_a_hook_can_change_registers_and_memory(tmp_path):
    program = Program().out(PORT, 1)
    program.raw("89d8")  # mov eax, ebx
    value = program._store()
    with tiny_guest(tmp_path, program.power_off()) as guest:

        def write(cpu, address, value, size):
            cpu.regs.rbx = 0x1234
            guest.memory.write(0x300000, b"hook")

        guest.on_port(PORT, 1, write=write)
        guest.run(seconds=SECONDS)
        assert results(guest, program)[value] == 0x1234
        assert guest.memory.read(0x300000, 4) == b"hook"


def test_watching_a_device_leaves_it_at_work(tmp_path):
    program = Program().out(layout.CMOS_PORT, 0x0D)
    original = program.read_port(layout.CMOS_PORT + 1)
    program.out(layout.COM1_PORT, ord("a")).out(layout.COM1_PORT, ord("b"))
    seen = []
    with tiny_guest(tmp_path, program.power_off()) as guest:

        @guest.on_port(layout.CMOS_PORT, 2, mode="watch")
        def watch(cpu, address, value, size):
            seen.append((address, value))

        def write(cpu, address, value, size):
            return ord("x") if value == ord("b") else None

        guest.on_port(layout.COM1_PORT, 1, write=write, mode="watch")
        assert guest.run(seconds=SECONDS).kind == "ended"
        assert seen == [(layout.CMOS_PORT, 0x0D), (layout.CMOS_PORT + 1, 0x80)]
        assert results(guest, program)[original] == 0x80
        assert guest.serial.text == "ax"


def test_a_replaced_device_comes_back_when_the_hook_goes(tmp_path):
    program = Program().out(layout.CMOS_PORT, 0x0D)
    values = [program.read_port(layout.CMOS_PORT + 1) for _ in range(4)]
    with tiny_guest(tmp_path, program.power_off()) as guest:
        hook = guest.on_port(layout.CMOS_PORT + 1)

        @hook
        def read(cpu, address, size):
            if hook.hits == 2:
                hook.remove()
                hook.remove()
            return 0x31

        assert guest.run(seconds=SECONDS).kind == "ended"
        assert [results(guest, program)[n] for n in values] == [0x31, 0x31, 0x80, 0x80]
        assert repr(hook).endswith("removed>")


def test_a_disabled_hook_is_not_there(tmp_path):
    program = Program()
    values = [program.read_port(layout.CMOS_PORT + 1) for _ in range(2)]
    with tiny_guest(tmp_path, Program().out(layout.CMOS_PORT, 0x0D).raw(program.code[6:].hex())
                    .power_off()) as guest:  # fmt: skip
        hook = guest.on_port(layout.CMOS_PORT + 1, 1, read=lambda *_: vmm.STOP)
        guest.run(seconds=SECONDS)
        hook.enabled = False
        assert guest.run(seconds=SECONDS).kind == "ended"
        assert [results(guest, program)[n] for n in values] == [0xFF, 0x80]


def test_two_vcpus_hook_on_one_thread(tmp_path):
    other = RealMode().out(PORT + 4, 7, 4).for_ever()
    program = wake_others(Program())
    for number in range(50):
        program.out(PORT, number, 4)
    seen: dict[int, int] = {0: 0, 1: 0}
    with tiny_guest(tmp_path, program.power_off(), cpu_count=2) as guest:
        guest.memory.write(AP_CODE, other)

        def write(cpu, address, value, size):
            assert threading.current_thread() is threading.main_thread()
            assert (address - PORT) // 4 == cpu.index
            assert cpu.regs.rip
            with pytest.raises(RuntimeError, match="in a hook only its own one"):
                _ = guest.cpus[1 - cpu.index].regs.rip
            seen[cpu.index] += 1

        guest.on_port(PORT, 8, write=write)
        assert guest.run(seconds=SECONDS).kind == "ended"
        assert seen[0] == 50
        assert seen[1] > 0


def test_a_time_out_comes_although_hooks_never_end(tmp_path):
    other = RealMode().out(PORT, 7, 4).for_ever()
    program = wake_others(Program()).raw("ebfe")
    with tiny_guest(tmp_path, program.power_off(), cpu_count=2) as guest:
        guest.memory.write(AP_CODE, other)
        hook = guest.on_port(PORT, 4, write=lambda *_: None)
        for _ in range(3):
            assert guest.run(seconds=0.3).kind == "timeout"
        assert hook.hits > 0


def test_a_hook_cannot_run_its_guest_but_another_one(tmp_path):
    program = Program().out(PORT, 1).out(PORT, 2)
    inner = Program()
    inner.read_port(PORT)
    (tmp_path / "inner").mkdir()
    with (
        tiny_guest(tmp_path, program.power_off()) as guest,
        tiny_guest(tmp_path / "inner", inner.power_off()) as second,
    ):
        second.on_port(PORT, 1, read=lambda *_: 0x42)

        def write(cpu, address, value, size):
            if value == 1:
                guest.run()
            assert second.run(seconds=SECONDS).kind == "ended"
            assert cpu.index == 0

        guest.on_port(PORT, 1, write=write)
        with pytest.raises(RuntimeError, match="cannot let it run"):
            guest.run(seconds=SECONDS)
        assert guest.run(seconds=SECONDS).kind == "ended"
        assert results(second, inner) == [0x42]


def test_nonsense_is_refused_by_name(tmp_path):
    with tiny_guest(tmp_path, Program().power_off()) as guest:
        guest.on_port(PORT, 4)
        for call, words in (
            (lambda: guest.on_port(PORT + 3, 2), r"replace hook at \[0x503.*overlaps replace hook"),
            (lambda: guest.on_port(-1), "range inside"),
            (lambda: guest.on_port(0xFFFF, 2), "range inside"),
            (lambda: guest.on_port("0x500"), "two integers"),
            (lambda: guest.on_port(0x600, 0), "range inside"),
            (lambda: guest.on_port(0x700, mode="look"), "mode='look': 'replace' or 'watch'"),
            (lambda: guest.on_port(0x700, read=5), "a function of"),
            (lambda: guest.on_port(0x700, read=lambda cpu: 0), "cannot be called with"),
            (lambda: guest.on_port(0x700)(lambda cpu: 0), "cannot be called with"),
            (lambda: guest.on_port(0x20), "the kernel's 8259"),
            (lambda: guest.on_port(0xFE), "this guest's breakpoints"),
            (lambda: guest.on_mmio(0x1000, 4), "overlaps guest RAM"),
            (lambda: guest.on_mmio(layout.IOAPIC_GPA, 4), "the kernel's IOAPIC"),
            (lambda: guest.on_mmio(1 << 60, 4), "range inside"),
            (lambda: guest.on_msr(0x830), "local APIC's"),
            (lambda: guest.on_msr(1 << 32), "below 2"),
        ):
            with pytest.raises(ValueError, match=words):
                call()
        guest.on_port(0, PORT, mode="watch")
        assert guest.run(seconds=SECONDS).kind == "ended"


def test_breakpoints_by_port_work_below_a_hook_of_all_ports(tmp_path):
    program = Program().out(PORT, 1)
    place = layout.HIGH_RAM_GPA + len(program.code)
    program.out(PORT, 2)
    with tiny_guest(tmp_path, program.power_off()) as guest:
        hook = guest.on_port(0, 1 << 16, mode="watch")
        point = guest.breakpoint(place, hardware=False)
        assert guest.run(seconds=SECONDS).where is point
        assert guest.run(seconds=SECONDS).kind == "ended"
        assert hook.hits == 3


def test_a_hook_in_front_of_a_breakpoint(tmp_path):
    program = Program().out(PORT, 1)
    place = layout.HIGH_RAM_GPA + len(program.code)
    with tiny_guest(tmp_path, program.power_off()) as guest:
        guest.breakpoint(place)
        hook = guest.on_port(PORT, 1, write=lambda *_: vmm.STOP)
        stop = guest.run(seconds=SECONDS)
        assert (stop.where, stop.address) == (hook, place)


def test_msrs_are_read_and_written_by_the_script(tmp_path):
    program = write_msr(Program(), SYSENTER_CS, 0x55)
    cs, mtrr = read_msr(program, SYSENTER_CS), read_msr(program, MTRR)
    seen = []
    with tiny_guest(tmp_path, program.power_off()) as guest:

        @guest.on_msr(SYSENTER_CS)
        def write(cpu, index, value, size):
            seen.append((index, value, size))
            return value + 1

        hook = guest.on_msr(MTRR, read=lambda cpu, index, size: 0xABCD)
        with pytest.raises(ValueError, match="overlaps <msr hook at 0x210"):
            guest.on_msr(MTRR)
        assert guest.run(seconds=SECONDS).kind == "ended"
        assert seen == [(SYSENTER_CS, 0x55, 8)]
        assert results(guest, program)[cs] == 0x56
        assert results(guest, program)[mtrr] == 0xABCD
        assert hook.hits == 1


def test_an_msr_hook_may_only_look_and_then_go(tmp_path):
    program = write_msr(Program(), SYSENTER_CS, 0x55)
    values = [read_msr(program, SYSENTER_CS) for _ in range(3)]
    with tiny_guest(tmp_path, program.power_off()) as guest:
        hook = guest.on_msr(SYSENTER_CS, write=lambda *_: None)

        @hook
        def read(cpu, index, size):
            if hook.hits == 3:
                hook.remove()
            return None if hook.hits == 2 else cpu.msrs[index] << 4

        assert guest.run(seconds=SECONDS).kind == "ended"
        assert [results(guest, program)[n] for n in values] == [0x55, 0x550, 0x55]
        again = guest.on_msr(SYSENTER_CS, read=read)
        again.enabled = False
        again.remove()


def test_a_fault_in_place_of_an_msr(tmp_path):
    """Without an interrupt table of the guest's it is a triple fault."""
    program = Program()
    read_msr(program, SYSENTER_CS)
    with tiny_guest(tmp_path, program.power_off()) as guest:
        guest.on_msr(SYSENTER_CS, read=lambda *_: vmm.GP)
        stop = guest.run(seconds=SECONDS)
        assert (stop.kind, stop.outcome.kind) == ("ended", "reset")


def test_a_register_that_only_the_script_has(tmp_path):
    program = write_msr(Program(), MISSING, 9)
    value = read_msr(program, MISSING)
    kept = {}
    with tiny_guest(tmp_path, program.power_off()) as guest:

        def write(cpu, index, value, size):
            kept[index] = value
            return vmm.DONE

        guest.on_msr(MISSING, lambda cpu, index, size: kept[index] + 1, write)
        assert guest.run(seconds=SECONDS).kind == "ended"
        assert kept == {MISSING: 9}
        assert results(guest, program)[value] == 10


def test_a_stop_at_an_msr(tmp_path):
    program = write_msr(Program(), SYSENTER_CS, 0x55)
    behind = layout.HIGH_RAM_GPA + len(program.code)
    with tiny_guest(tmp_path, program.power_off()) as guest:
        hook = guest.on_msr(SYSENTER_CS, write=lambda *_: vmm.STOP)
        stop = guest.run(seconds=SECONDS)
        assert (stop.where, stop.address) == (hook, behind)
        assert guest.cpus[0].msrs[SYSENTER_CS] == 0x55
        assert guest.run(seconds=SECONDS).kind == "ended"
