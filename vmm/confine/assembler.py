"""Makes filters of the tables: struct sock_filter of classic BPF. Not read by a start.

`python -m vmm.confine.assembler` writes programs.py, which is kept beside the tables; a test holds
both together, and another one each filter against what libseccomp makes of the same table. An
assembler of our own, because a wheel is built where no libseccomp need be, and the filter is a
sorted tree of numbers: nothing of it is hard. Source: bpf(4) of FreeBSD, linux/filter.h.
"""

from __future__ import annotations

import re
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vmm.confine.tables import ALLOW, HOT, TABLES, Line

if TYPE_CHECKING:
    from collections.abc import Sequence

# A step: code, where to go (so many steps further) if true and if false, operand. ALLOWED stands
# for the end of a leaf.
Step = tuple[int, int | str, int, int]
ALLOWED = "allowed"
LOAD, AND, GO, EQUAL, AT_LEAST, RETURN = 0x20, 0x54, 0x05, 0x15, 0x35, 0x06
RET_ALLOW, RET_ERRNO, RET_TRAP = 0x7FFF0000, 0x00050000, 0x00030000
# struct seccomp_data: nr, arch, instruction_pointer, args.
NUMBER_AT, ARCH_AT, ARGS_AT = 0, 4, 16
ARCH_X86_64 = 0xC000003E
WORD = 0xFFFFFFFF
JUMP_MAX = 255
# So few are looked at one after the other.
LEAF = 16
NAMES = Path(__file__).resolve().parents[1] / "_native/linux/syscall_names.h"
PROGRAMS = Path(__file__).with_name("programs.py")


def call_numbers() -> dict[str, int]:
    """Of each system call, by its name."""
    found = re.findall(r'"(\w*)\\0"', NAMES.read_text())
    return {name: number for number, name in enumerate(found) if name}


def verdict(answer: int) -> Step:
    """The last step, for an allowed call or one that gets an errno."""
    return RETURN, 0, 0, RET_ALLOW if answer == ALLOW else RET_ERRNO | answer


def of_line(line: Line) -> list[Step]:
    """Goes to its end where the line holds, and on behind itself where an argument is another."""
    steps: list[Step] = [] if line.answer == ALLOW else [verdict(line.answer)]
    for arg in reversed(line.args):
        check: list[Step] = [(LOAD, 0, 0, ARGS_AT + 8 * arg.position)]
        if arg.mask != WORD:
            check.append((AND, 0, 0, arg.mask))
        yes: int | str = 0 if steps else ALLOWED
        steps = [*check, (EQUAL, yes, len(steps), arg.value), *steps]
    return steps


def of_call(lines: Sequence[Line]) -> list[Step]:
    """All lines of one call; none holds: the trap."""
    steps: list[Step] = []
    for line in lines:
        found = of_line(line)
        if steps and len(found) == 2 and found[0] == loaded(steps):
            found = found[1:]
        steps += found
    last = lines[-1]
    if last.args:
        steps.append((RETURN, 0, 0, RET_TRAP))
    elif last.answer == ALLOW:
        steps.append(verdict(ALLOW))
    return steps


def loaded(steps: Sequence[Step]) -> Step | None:
    """The step that loaded the number which is compared, where nothing was done to it since."""
    for step in reversed(steps):
        if step[0] == LOAD:
            return step
        if step[0] != EQUAL or step[1] != ALLOWED:
            return None
    return None


def if_number(number: int, steps: list[Step]) -> list[Step]:
    """``steps`` for this call; for others what stands behind them."""
    if steps == [verdict(ALLOW)]:
        return [(EQUAL, ALLOWED, 0, number)]
    return [(EQUAL, 0, len(steps), number), *steps]


def leaf(calls: Sequence[tuple[int, list[Step]]]) -> list[Step]:
    """A few calls, one after the other, then the trap; with one end for all that is allowed."""
    steps = [step for number, found in calls for step in if_number(number, found)]
    steps += [(RETURN, 0, 0, RET_TRAP), verdict(ALLOW)]
    end = len(steps) - 1
    return [
        (code, end - at - 1 if yes == ALLOWED else yes, no, operand)
        for at, (code, yes, no, operand) in enumerate(steps)
    ]


def of_tree(calls: Sequence[tuple[int, list[Step]]]) -> list[Step]:
    """Finds the call among ascending numbers, in as few steps as they allow; else the trap."""
    if len(calls) <= LEAF:
        return leaf(calls)
    half = len(calls) // 2
    low, high = of_tree(calls[:half]), of_tree(calls[half:])
    middle = calls[half][0]
    if len(low) <= JUMP_MAX:
        return [(AT_LEAST, len(low), 0, middle), *low, *high]
    return [(AT_LEAST, 0, 1, middle), (GO, 0, 0, len(low)), *low, *high]


def steps_of(table: Sequence[Line], hot: str | None = None) -> list[Step]:
    """The filter of a table, which looks for the call ``hot`` first."""
    numbers = call_numbers()
    grouped: dict[int, list[Line]] = {}
    for line in table:
        grouped.setdefault(numbers[line.call], []).append(line)
    for lines in grouped.values():
        # A line without arguments holds always: those behind it would never be asked.
        lines.sort(key=lambda line: not line.args)
    calls = sorted((number, of_call(lines)) for number, lines in grouped.items())
    first: list[Step] = []
    if hot is not None:
        found = leaf([(numbers[hot], of_call(grouped[numbers[hot]]))])
        # Behind it stands the rest, in place of the trap.
        first = [(EQUAL, 1, 0, numbers[hot]), (GO, 0, 0, len(found)), *found]
        calls = [(number, steps) for number, steps in calls if number != numbers[hot]]
    return [
        (LOAD, 0, 0, ARCH_AT),
        (EQUAL, 1, 0, ARCH_X86_64),
        (RETURN, 0, 0, RET_TRAP),
        (LOAD, 0, 0, NUMBER_AT),
        *first,
        *of_tree(calls),
    ]


def program(kind: str) -> bytes:
    """The filter of a kind of thread, as the kernel takes it."""
    steps = steps_of(TABLES[kind], HOT.get(kind))
    return b"".join([struct.pack("<HBBI", *step) for step in steps])


def source() -> str:
    """The text of programs.py."""
    lines = [
        '"""Filters of system calls, one for each kind of thread, in hexadecimal digits.',
        "",
        "Made by assembler.py, of tables.py, and never by hand.",
        '"""',
        "",
        "PROGRAMS = (",
    ]
    for kind in TABLES:
        text = program(kind).hex()
        lines += [f"    # {kind}", "    bytes.fromhex("]
        lines += [f'        "{text[at : at + 80]}"' for at in range(0, len(text), 80)]
        lines.append("    ),")
    return "\n".join([*lines, ")"]) + "\n"


if __name__ == "__main__":
    PROGRAMS.write_text(source())
    print(PROGRAMS, *[f"{kind} {len(program(kind)) // 8}" for kind in TABLES], file=sys.stderr)
