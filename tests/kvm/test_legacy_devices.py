"""Each legacy device's registers, by a guest's own accesses."""

from __future__ import annotations

import time

from tests.support.guest_asm import Program
from tests.support.tiny_machine import TinyMachine, results
from vmm.run.outcome import outcome_of

COM1 = 0x3F8


def test_com1_registers(tmp_path):
    program = Program()
    program.out(COM1 + 3, 0x80).out(COM1, 0x0C).out(COM1 + 1, 0)
    divisor = program.read_port(COM1)
    program.out(COM1 + 3, 0x03)
    lcr = program.read_port(COM1 + 3)
    lsr = program.read_port(COM1 + 5)
    program.out(COM1 + 7, 0xA5)
    scratch = program.read_port(COM1 + 7)
    iir = program.read_port(COM1 + 2)
    program.out(COM1 + 4, 0x1F)
    msr = program.read_port(COM1 + 6)
    program.out(COM1, ord("L"))
    looped = program.read_port(COM1 + 5)
    back = program.read_port(COM1)
    program.out(COM1 + 4, 0x08).out(COM1, ord("A")).out(COM1, ord("B"))
    with TinyMachine(tmp_path, program.power_off()) as tiny:
        assert tiny.run().kind == "shutdown"
        found = tiny.results(program)
        assert tiny.serial == b"AB"
    assert found[divisor] == 0x0C
    assert found[lcr] == 0x03
    assert found[lsr] == 0x60
    assert found[scratch] == 0xA5
    assert found[iir] & 0x0F == 1
    assert found[msr] & 0xF0 == 0xF0
    assert found[looped] & 1
    assert found[back] == ord("L")


def test_rtc_and_memory_size_in_cmos(tmp_path):
    program = Program()

    def cmos(register: int) -> int:
        program.out(0x70, register)
        return program.read_port(0x71)

    valid, year, century = cmos(0x0D), cmos(0x09), cmos(0x32)
    low = [cmos(0x34), cmos(0x35)]
    high = [cmos(0x5B), cmos(0x5C), cmos(0x5D)]
    program.out(0x70, 0x40).out(0x71, 0x77).out(0x70, 0x40)
    kept = program.read_port(0x71)
    found = results(tmp_path, program, MEMORY_CONFIG="size=64M")
    now = time.gmtime()
    assert found[valid] & 0x80
    assert int(f"{found[century]:x}{found[year]:02x}") == now.tm_year
    assert (found[low[1]] << 8 | found[low[0]]) * 65536 == (64 - 16) << 20
    assert [found[index] for index in high] == [0, 0, 0]
    assert found[kept] == 0x77


def test_pm_timer_runs_forward(tmp_path):
    program = Program()
    first = program.read_port(0x608, 4)
    for _ in range(20):
        program.read_port(0x608, 4)
    found = results(tmp_path, program)
    times = found[first:]
    assert times == sorted(times)
    assert times[-1] > times[0]
    # 3.579545 MHz: 21 reads take less than a second
    assert times[-1] - times[0] < 3_579_545


def test_small_ports(tmp_path):
    program = Program()
    debug = program.read_port(0x402)
    program.out_string(0x402, b"firmware says\n")
    program.out(0x80, 0x42)
    post = program.read_port(0x80)
    status = program.read_port(0x64)
    sleep_status = program.read_port(0x601)
    absent = program.read_port(0xCF9)
    found = results(tmp_path, program)
    assert found[debug] == 0xE9
    assert found[post] in (0x42, 0xFF)
    assert found[status] in (0, 0xFF, 0x1C)
    assert found[sleep_status] in (0, 0xFF)
    assert found[absent] in (0, 0xFF)


def test_power_button_wakes_the_ged(tmp_path):
    with TinyMachine(tmp_path, Program().power_off()) as tiny:
        assert tiny.run().kind == "shutdown"
        tiny.machine.power_button()
        tiny.machine.power_button()
        assert tiny.machine.ged.read(0, 1) == 8
        assert tiny.machine.ged.read(0, 1) == 0


def test_interrupts_before_the_guest_set_up_its_controllers_do_not_reach_it(tmp_path):
    """The boot IDT is empty: a vector that came by the 8259 pair would be a triple fault."""
    program = Program().raw("fb f4 ebfd")  # sti; hlt; again
    with TinyMachine(tmp_path, bytes(program.code)) as tiny:
        tiny.machine.start()
        for _ in range(20):
            tiny.machine.power_button()
            time.sleep(0.01)
        assert tiny.machine.vcpus[0].loop.running, outcome_of(tiny.machine).report
