"""Accesses that a hook does not want never come up to Python: conditions on what they are."""

from __future__ import annotations

import pytest

from tests.support.guest_asm import Program
from tests.support.speed import patience
from tests.support.tiny_guest import results, tiny_guest

FREE_GPA = 0xC1000000


def test_a_condition_of_a_hook_is_looked_at_natively(tmp_path):
    program = Program()
    for value in range(10):
        program.out(0x3FF, value)
    program.read_port(0x3FF)
    with tiny_guest(tmp_path, program.power_off()) as guest:
        seen = []
        hook = guest.on_port(
            0x3F8, 8, write=lambda *access: seen.append(access[1:]), condition="value % 4 == 3"
        )
        assert guest.run(seconds=patience(10)).kind == "ended"
        assert seen == [(0x3FF, 3, 1), (0x3FF, 7, 1)]
        # All else was the device's: the newest of it is in its scratch register.
        assert (hook.hits, hook.passed) == (2, 9)
        assert guest.device("COM1").state()["scr"] == 9
        assert repr(hook) == "<port hook at 0x3f8..0x3ff, 2 hits, 9 passed>"


def test_a_condition_of_a_hook_on_registers_and_addresses(tmp_path):
    program = Program()
    for offset in (0, 8, 16):
        program.read(FREE_GPA + offset)
    with tiny_guest(tmp_path, program.power_off(), cpu_count=2) as guest:
        hook = guest.on_mmio(
            FREE_GPA, 64, read=lambda *_: 0x77,
            condition=f"address == {FREE_GPA + 8} and cr0 & 1 and size == 4",
        )  # fmt: skip
        watch = guest.on_port(0xE1, 1, mode="watch", condition="1 // (rax - rax)")
        assert guest.run(seconds=patience(10)).kind == "ended"
        assert [value & 0xFFFFFFFF for value in results(guest, program)] == [
            0xFFFFFFFF, 0x77, 0xFFFFFFFF,
        ]  # fmt: skip
        assert (hook.hits, hook.passed, watch.hits) == (1, 2, 0)


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("port == 3", "'port' is not possible; write registers .*apic_base, address, value, size"),
        (lambda: True, "text; a function may look for itself"),
        ("value <", "invalid syntax"),
    ],
)
def test_conditions_of_hooks_that_are_none(tmp_path, condition, words):
    with tiny_guest(tmp_path, b"\xf4") as guest:
        with pytest.raises(ValueError, match=words):
            guest.on_port(0xE1, 1, condition=condition)
        with pytest.raises(ValueError, match="'value' is not possible"):
            guest.breakpoint(0x100000, condition="value == 1")
        guest.on_port(0xE1, 1)
