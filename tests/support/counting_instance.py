"""An instance whose guest counts in RAM until it is told to end, as another process sees it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support.command import Command, finish
from tests.support.guest_asm import Program
from tests.support.speed import patience
from vmm.debug.attach.attached import Attached

COUNTER, FLAG, MAGIC_AT = 0x300000, 0x300008, 0x300010
MAGIC = 0xC0FFEE
# Its loop: inc eax; mov [COUNTER], eax; cmp byte [FLAG], 0; je to its begin.
LOOP = "b800000000 83c001 a300003000 803d0800300000 74ef"


def counting(end: Callable[[Program], object] = Program.power_off) -> bytes:
    """Says "up", counts at COUNTER until FLAG is not 0, then does what ``end`` appends."""
    program = Program().write(MAGIC_AT, MAGIC).out_string(0x3F8, b"up\n").raw(LOOP)
    end(program)
    return bytes(program.code)


def reset(program: Program) -> None:
    """A reboot by the keyboard controller."""
    program.out(0x64, 0xFE).raw("f4")


def resetting() -> bytes:
    """Says "up", and reboots."""
    program = Program().out_string(0x3F8, b"up\n")
    reset(program)
    return bytes(program.code)


@contextlib.contextmanager
def running(
    folder: Path, code: bytes | None = None, **settings: object
) -> Iterator[tuple[Command, subprocess.Popen[bytes]]]:
    """The command, and the process of an instance that runs such a guest, and may be seen."""
    settings = {"ATTACH": "on", **settings}
    with instance(folder, counting() if code is None else code, **settings) as started:
        yield started


@contextlib.contextmanager
def instance(
    folder: Path, code: bytes, **settings: object
) -> Iterator[tuple[Command, subprocess.Popen[bytes]]]:
    """The same of any guest, with no setting but these and a short time to stop."""
    settings = {"STOP_TIMEOUT_SECONDS": "0.2", **settings}
    command = Command(folder, code, **settings)
    process = command.start()
    try:
        yield command, process
    finally:
        process.kill()
        process.communicate()


def rebooted(command: Command, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The status of an instance that has rebooted a few times."""
    deadline = time.monotonic() + patience(20)
    while True:
        assert process.poll() is None, finish(process)[1]
        code, text = command.run("status", "vm", "--json")
        facts = json.loads(text) if code == 0 else {}
        if facts.get("reboots", 0) >= 2 and "memory" in facts:
            return dict(facts)
        assert time.monotonic() < deadline, text
        time.sleep(0.05)


def count(attached: Attached) -> int:
    return int.from_bytes(attached.memory.read(COUNTER, 4), "little")


def goes_on(attached: Attached) -> bool:
    """The guest counts, sooner or later."""
    first, deadline = count(attached), time.monotonic() + patience(10)
    while count(attached) == first:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def stands_still(attached: Attached) -> bool:
    first = count(attached)
    time.sleep(0.1)
    return count(attached) == first
