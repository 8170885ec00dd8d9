"""What objects of a guest say of themselves, in a terminal and in a notebook."""

from __future__ import annotations

import numpy  # noqa: F401  # its threads are there before a test counts them
import pytest

from tests.support.elf_builder import LOAD_GPA
from tests.support.guest_asm import Program
from tests.support.speed import patience
from tests.support.tiny_guest import tiny_guest


@pytest.fixture
def guest(tmp_path):
    program = Program().out_string(0x3F8, b"<b>said</b>")
    with tiny_guest(tmp_path, program.power_off()) as made:
        yield made


def objects(guest, point, stop, taken):
    cpu = guest.cpus[0]
    return {
        "<Guest guest.elf, 1 CPUs, 16 MiB, ended: shutdown>": guest,
        f"<cpu 0 at {cpu.address:#x}>": cpu,
        "rip=": cpu.regs,
        "cr3=": cpu.sregs,
        "<MSRs of cpu 0>": cpu.msrs,
        "memory through the page tables": cpu.memory,
        "hlt": cpu.disassemble(1, cpu.address),
        "guest RAM": guest.memory,
        "11 bytes, the end b'<b>said</b>'": guest.serial,
        "ended: cpu 0 at": stop,
        "breakpoint at 0x100000": point,
        "exits in": guest.trace.summary(),
        "<Trace of guest.elf": guest.trace,
        "0 hits>": guest.points,
        "<device COM1 at ports": guest.devices,
        "KVM's statistics": guest.stats(),
        "<Snapshot of": taken,
        "<snapshot RAM of 16 MiB>": taken.memory,
    }


def test_everything_says_what_it_is(guest):
    taken = guest.snapshot()
    point = guest.breakpoint(LOAD_GPA, lambda cpu: None)
    with guest.trace:
        stop = guest.run(seconds=patience(10))
    for words, one in objects(guest, point, stop, taken).items():
        assert words in repr(one), repr(one)
        html = one._repr_html_()
        assert html.startswith("<"), html
        assert "<b>said" not in html


def test_what_is_closed_still_does(tmp_path):
    with tiny_guest(tmp_path, b"\xeb\xfe") as guest:
        guest.start()
        assert "running" in repr(guest)
        assert "running" in guest._repr_html_()
    assert "closed" in guest._repr_html_()
    assert "closed" in repr(guest)


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda guest: guest.step(0), "count=0: a number of instructions"),
        (lambda guest: guest.step("a"), "count='a': a number of instructions"),
        (lambda guest: guest.step(1, cpu="x"), "cpu='x': this guest has 0 to 0"),
        (lambda guest: guest.run(seconds="x"), "seconds='x': a time to come"),
        (lambda guest: guest.run(seconds=-1), "seconds=-1: a time to come"),
        (lambda guest: guest.run(seconds=float("nan")), "seconds=nan: a time to come"),
        (lambda guest: setattr(guest.cpus[0].regs, "rax", "x"), "rax='x': an integer of 64 bits"),
        (lambda guest: setattr(guest.cpus[0].regs, "rax", 1 << 64), "does not fit into 64 bits"),
        (lambda guest: guest.cpus[0].msrs["a"], "MSR 'a': a number below"),
        (lambda guest: guest.cpus[0].msrs.__setitem__(0x10, "x"), "MSR 0x10='x': an integer of 64"),
        (lambda guest: guest.serial.expect("(", 1), "serial: no pattern"),
    ],
)
def test_mistakes_are_named(guest, mistake, words):
    with pytest.raises((ValueError, TypeError), match=words.replace("(", "\\(")):
        mistake(guest)


def test_a_time_without_end_is_one(tmp_path):
    with tiny_guest(tmp_path, b"\xf4") as guest:
        guest.breakpoint(LOAD_GPA + 1)
        guest.breakpoint(LOAD_GPA, lambda cpu: setattr(cpu.regs, "rip", LOAD_GPA + 1))
        assert guest.run(seconds=float("inf")).kind == "breakpoint"
