"""The file system of log, console, state and socket is full for a while: the guest goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.command import COMMAND, Command
from tests.support.journal import journal_guest
from tests.support.speed import patience

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a file system of its own needs root")


@pytest.fixture
def small(tmp_path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def fill(place: Path) -> None:
    with open(place / "filler", "wb", buffering=0) as file:
        size = 4096
        while size:
            try:
                size = file.write(bytes(4096))
            except OSError:
                return


def wait_for(process: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + patience(20)
    while not condition():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)


def writes(command: Command) -> int:
    code, text = command.run("status", "--json")
    assert code == 0, text
    found = json.loads(text)
    devices = (found[0] if isinstance(found, list) else found)["devices"]
    return next(device["writes"] for device in devices if device["name"] == "disk0")


def test_the_guest_outlives_a_full_disk(tmp_path, small):
    command = Command(tmp_path, KERNEL_FILEPATH=journal_guest(tmp_path))
    command.set(SERIAL=f"file={small}/serial", LOG_FILEPATH=small / "log")
    command.env["XDG_RUNTIME_DIR"] = str(small)
    process = subprocess.Popen([COMMAND, "start"], env=command.env, stdin=subprocess.DEVNULL)
    serial = small / "serial"
    try:
        wait_for(process, lambda: serial.exists() and serial.stat().st_size > 100)
        fill(small)
        size = serial.stat().st_size // 4096
        first = writes(command)
        process.send_signal(signal.SIGHUP)  # a line for the log, and files opened anew
        wait_for(process, lambda: writes(command) > first + 100)
        assert serial.stat().st_size // 4096 <= size + 1
        (small / "filler").unlink()
        wait_for(process, lambda: serial.stat().st_size // 4096 > size + 1)
        fill(small)
        code, text = command.run("stop", "--now")
        assert code == 0, text
        assert process.wait(patience(20)) == 37
    finally:
        process.kill()
        process.wait()
    (small / "filler").unlink()
    # What it could not write at its end stops nobody.
    serial.unlink()
    process = subprocess.Popen([COMMAND, "start"], env=command.env, stdin=subprocess.DEVNULL)
    try:
        wait_for(process, lambda: serial.exists() and serial.stat().st_size > 100)
        assert command.run("stop", "--now")[0] == 0
        assert process.wait(patience(20)) == 37
    finally:
        process.kill()
        process.wait()
