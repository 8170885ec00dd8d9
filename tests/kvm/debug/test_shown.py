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
        assert words in (str(one) if one is stop else repr(one)), repr(one)
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
