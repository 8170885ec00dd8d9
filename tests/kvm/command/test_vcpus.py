"""Where a running guest's processors are, asked for by the control socket."""

from __future__ import annotations

import json

import pytest

from tests.support.command import HALT, Command, finish
from tests.support.guest_asm import Program
from vmm.run.control import ask

# Where Linux waits for a lock (native_queued_spin_lock_slowpath), here for ever.
LOCKED = Program().write(0x2000, 1).out_string(0x3F8, b"up\n").raw("bb00200000 f390 8b0384c075f8")


def vcpus(command: Command) -> list[str]:
    path = json.loads(command.run("status", "--json")[1])["sockets"]["control"]
    return ask(path, {"command": "vcpus"})["vcpus"]


def test_registers_and_code_of_each(tmp_path):
    command = Command(tmp_path, HALT, CPU_COUNT=2)
    process = command.start()
    first, second = vcpus(command)
    assert first.startswith("vCPU 0: halted")
    assert "code at rip: eb fd" in first
    assert "io 0x3f8 <- 0x75" in first
    assert second == "vCPU 1: waiting for INIT"
    command.run("stop", "--now")
    finish(process)


@pytest.mark.waits
def test_a_guest_that_waits_for_a_lock_is_told_apart(tmp_path):
    from tests.lab.rig import flaw

    command = Command(tmp_path, bytes(LOCKED.code))
    process = command.start()
    # What the processor does at the pause is the host's choice: it may be seen behind any of four.
    seen = [flaw.waits_for_itself(vcpus(command)) for _ in range(60)]
    assert "its only processor waits for a lock" in seen
    command.run("stop", "--now")
    finish(process)
