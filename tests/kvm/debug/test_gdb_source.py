"""Debian's gdb at the source of a guest that was compiled with DWARF."""

from __future__ import annotations

import re

import pytest

import vmm
from tests.support.dwarf_guest import dwarf_guest, line_of
from tests.support.gdb import Gdb
from tests.support.long_mode import long_mode


@pytest.fixture
def gdb(tmp_path):
    """Attached to the guest at its first instruction, with the names and lines of its file."""
    kernel = dwarf_guest(tmp_path)
    with vmm.Guest(kernel=kernel, memory="16M") as guest:
        long_mode(guest)
        with guest.gdb("127.0.0.1:0") as server, Gdb(server.address, str(kernel)) as made:
            assert "start" in made.attached
            yield made


def line(gdb: Gdb) -> int:
    """Where it stands, of the source's lines."""
    found = re.search(r'Line (\d+) of "[^"]*dwarf_guest.c"', gdb.type("info line *$pc"))
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("how", ["break", "hbreak"])
def test_structs_and_next_over_a_call(gdb, how):
    gdb.type(f"{how} move")
    assert re.search(r"Breakpoint 1, move \(line=0x\w+ <drawn>, by=10\)", gdb.type("continue"))
    assert line(gdb) == line_of("call")
    assert "from = {x = 1, y = 2}, to = {x = 3, y = 4}, moves = 0}" in gdb.type("print *line")
    assert '"drawn"' in gdb.type("print line->name")
    assert "unsigned long moves;" in gdb.type("ptype line")
    gdb.type("next")
    assert line(gdb) == line_of("behind")
    assert "{x = 13, y = 4}" in gdb.type("print line->to")
    gdb.type("next")
    assert " = 1" in gdb.type("print line->moves")
    gdb.type("set var line->to.x = 100")
    assert "Breakpoint 1, move" in gdb.type("continue")
    gdb.type("next")
    assert "{x = 110, y = 4}" in gdb.type("print drawn.to")


def test_step_into_a_call_the_frames_and_finish(gdb):
    gdb.type("break move")
    gdb.type("continue")
    assert "sum (a=3, b=10)" in gdb.type("step")
    frames = gdb.type("bt")
    assert re.search(r"#0  sum .*\n#1  0x\w+ in move .*\n#2  0x\w+ in start ", frames), frames
    assert "both = " in gdb.type("info locals")
    gdb.type("next")
    assert line(gdb) == line_of("sum")
    assert "$1 = 13" in gdb.type("print both")
    gdb.type("set var both = 50")
    assert "Value returned is $2 = 50" in gdb.type("finish")
    assert line(gdb) == line_of("call")
    assert "$3 = 1" in gdb.type("up") + gdb.type("print (int) rounds == 0")


def test_a_variable_is_watched_by_its_name(gdb):
    assert "watchpoint" in gdb.type("watch drawn.moves")
    for moves in range(3):
        told = gdb.type("continue")
        assert f"Old value = {moves}" in told, told
        assert f"New value = {moves + 1}" in told, told


def test_break_when_a_condition_holds(gdb):
    gdb.type("break move if line->moves == 3")
    assert "Breakpoint 1, move" in gdb.type("continue")
    assert "{x = 33, y = 4}" in gdb.type("print drawn.to")
    assert "breakpoint already hit 1 time" in gdb.type("info breakpoints")
