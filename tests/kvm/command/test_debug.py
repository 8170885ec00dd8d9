"""DEBUG=1 is for finding out; without it nothing of that is in the log."""

from __future__ import annotations

import re
import subprocess
import time

import pytest

from tests.support.command import COMMAND, PREFIX, RESET, Command, finish
from tests.support.guest_asm import Program
from tests.support.speed import patience
from vmm.layout import MMIO32_GPA
from vmm.settings.config import SETTINGS

SLOT = 2
ENABLE = 1 << 31
MOVED = MMIO32_GPA + 0x900000
STATUS = 0x14
# FEATURES_OK without VERSION_1 is refused; the driver goes on all the same, then with it.
ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK = 1, 2, 8, 4


def config_write(program: Program, register: int, value: int, size: int = 4) -> None:
    program.out(0xCF8, ENABLE | SLOT << 11 | register & 0xFC, 4)
    program.out(0xCFC + (register & 3), value, size)


def driver() -> bytes:
    """Moves disk0's BAR, then goes through the device's life as a driver does."""
    program = Program()
    config_write(program, 0x10, MOVED)
    program.write(MOVED + STATUS, ACKNOWLEDGE | DRIVER, 1)
    program.write(MOVED + STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK, 1)
    program.write(MOVED + 0x08, 1).write(MOVED + 0x0C, 1)  # VERSION_1
    program.write(MOVED + STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK, 1)
    program.write(MOVED + 0x18, 64, 2).write(MOVED + 0x1A, 1, 2)
    program.write(MOVED + 0x20, 0x10000).write(MOVED + 0x28, 0x11000).write(MOVED + 0x30, 0x12000)
    program.write(MOVED + 0x1C, 1, 2)
    program.write(MOVED + STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK, 1)
    program.write(MOVED + STATUS, 0, 1)
    return program.power_off()


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("debug")
    command = Command(folder, driver(), DEBUG=1, LOG_FILEPATH=folder / "log", CMDLINE="a=b")
    code, text = command.run("start")
    assert code == 0, text
    return (folder / "log").read_text()


@pytest.mark.parametrize("name", [setting.name for setting in SETTINGS])
def test_every_setting_with_its_source(log, name):
    assert re.search(rf"debug .*setting {PREFIX}{name}=.*\((environment|default)\)", log)


@pytest.mark.parametrize(
    "words",
    [
        r"host: version \S+ on Linux ",
        r"host: memory: MemTotal: \d+ kB, MemAvailable: \d+ kB",
        r"host: limits .*Max open files \d+",
        r"KVM API 12, up to \d+ vCPUs",
        r"guest: 1 vCPUs, \d+ address bits, RAM 16M at 0x0",
        r"kernel: pvh, entry 0x100000, loaded to \[0x100000, .*command line: 3 of 2047 characters",
        r"guest: 00:01.0 console \[1af4:1043\] class ",
        r"guest: 00:02.0 disk0 \[1af4:1042\] class 018000, BAR 0: 32-bit memory of 512K at 0x",
        r"guest: disk0: 2 MSI-X vectors",
        rf"disk0: BAR 0 answers at {MOVED:#x} now",
        r"disk0: status 0x00, driver writes 0x03",
        r"disk0: status 0x03, driver writes 0x0b: features 0x0 of 0x1[0-9a-f]{8} refused",
        r"disk0: status 0x03, driver writes 0x0b: features 0x100000000 of 0x1[0-9a-f]{8} taken",
        r"disk0: queue 0 on: size 64, areas at 0x10000, 0x11000, 0x12000, vector 0x1",
        r"disk0: reset by its driver",
        r"the machine ended by shutdown: the guest powered itself off",
    ],
)
def test_what_is_told(log, words):
    assert re.search(f"debug .*{words}", log), log


def test_without_debug_there_is_none_of_it(tmp_path):
    command = Command(tmp_path, driver(), LOG_FILEPATH=tmp_path / "log")
    assert command.run("start")[0] == 0
    assert "Z debug " not in (tmp_path / "log").read_text()


@pytest.mark.waits
def test_exits_per_second_and_the_place_they_are_at(tmp_path):
    loop = bytes(Program().raw("b058 e680 ebfc").code)  # out to port 0x80, again and again
    command = Command(tmp_path, loop, DEBUG=1, LOG_FILEPATH=tmp_path / "log")
    process = subprocess.Popen(
        [COMMAND, "start"], env=command.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    deadline = time.monotonic() + patience(30)
    found = None
    while found is None and time.monotonic() < deadline:
        time.sleep(0.5)
        text = (tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""
        found = re.search(r"exits per second: io (\d+).*; (\d+) of the last \d+ were io 0x80", text)
    command.run("stop", "--now")
    finish(process)
    assert found, text
    assert int(found[1]) > 100


@pytest.mark.waits
def test_why_a_guest_was_started_again(tmp_path):
    command = Command(tmp_path, RESET, DEBUG=1, LOG_FILEPATH=tmp_path / "log")
    process = subprocess.Popen(
        [COMMAND, "start"], env=command.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    time.sleep(2)
    command.run("stop", "--now")
    finish(process)
    text = (tmp_path / "log").read_text()
    assert "the machine ended by reset: the guest reset the machine (0xfe to port 0x64)" in text
