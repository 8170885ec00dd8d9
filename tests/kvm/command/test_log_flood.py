"""A guest decides how often some lines are written: the host's log stays small all the same."""

from __future__ import annotations

import pytest

from tests.kvm.test_exhaustion import DISK, low_bars
from tests.support.command import Command
from tests.support.guest_asm import Program
from tests.support.log_lines import log_lines
from tests.support.tiny_machine import TinyMachine
from tests.support.two_vcpus import COMMON_STATUS, loop
from vmm.log.hub import DEBUG

PANIC_PORT, FIRMWARE_PORT = 0x505, 0x402
ROUNDS = 5000


@pytest.mark.parametrize(
    ("body", "text", "debug", "rounds"),
    [
        (Program().out(PANIC_PORT, 2), "its crash kernel takes over", 0, ROUNDS),
        (Program().out_string(FIRMWARE_PORT, b"a line of firmware\n"), "of firmware", 1, ROUNDS),
        (Program().out_string(FIRMWARE_PORT, b"x" * 255), "firmware: xxx", 1, ROUNDS // 5),
    ],
)
def test_lines_that_a_guest_writes_in_a_loop(tmp_path, body, text, debug, rounds):
    program = loop(Program(), body, rounds)
    log = tmp_path / "log"
    command = Command(tmp_path, program.power_off(), LOG_FILEPATH=log, DEBUG=debug)
    code, said = command.run("start", seconds=120)
    assert code == 0, said
    lines = log.read_text().splitlines()
    like_it = [line for line in lines if text in line]
    assert 10 <= len(like_it) < 250
    assert sum(len(line) for line in lines) < 100_000
    assert any("more suppressed" in line for line in lines)
    assert "powered itself off" in log.read_text()


def test_a_driver_that_starts_with_nonsense_in_a_loop(tmp_path):
    with TinyMachine(tmp_path, b"\xf4") as tiny, log_lines(DEBUG) as lines:
        bar = low_bars(tiny)[DISK]
        body = Program()
        for status in (0, 1, 3):
            body.write(bar + COMMON_STATUS, status, 1)
        body.write(bar + 0x08, 1).write(bar + 0x0C, 1).write(bar + COMMON_STATUS, 0xB, 1)
        body.write(bar + 0x20, 0xFFFF0000).write(bar + 0x1C, 1, 2)
        body.write(bar + COMMON_STATUS, 0xF, 1)
        tiny.load(loop(Program(), body, ROUNDS).power_off())
        assert tiny.run(120).kind == "shutdown"
    assert 10 <= len(lines.having("cannot use it")) < 30
    assert len(lines.having("more suppressed")) >= 1


def test_bars_that_are_moved_to_nowhere_in_a_loop(tmp_path):
    from tests.kvm.test_pci import cf8_write

    with TinyMachine(tmp_path, b"\xf4") as tiny, log_lines(DEBUG) as lines:
        body = Program()
        cf8_write(body, DISK, 0x10, 0x1000000)
        cf8_write(body, DISK, 0x10, 0x2000000)
        tiny.load(loop(Program(), body, ROUNDS).power_off())
        assert tiny.run(120).kind == "shutdown"
    assert 10 <= len(lines.having("waits for")) < 30
