"""Terminals, sockets and pseudo-terminals at the ends of consoles."""

from __future__ import annotations

import json
import os
import pty
import socket
import subprocess
import termios
import time

import pytest

from tests.support.command import COMMAND, HALT, Command
from tests.support.guest_asm import Program
from tests.support.speed import patience

ECHO = bytes(
    Program()
    .out_string(0x3F8, b"up\n")
    # wait for LSR bit 0; read the byte; send it back; again
    .raw("66bafd03 ec a801 74fb 66baf803 ec ee ebef".replace(" ", ""))
    .code
)


def test_the_terminal_comes_back(tmp_path):
    command = Command(tmp_path, HALT)
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    process = subprocess.Popen([COMMAND, "start"], env=command.env, stdin=slave, stdout=slave)
    text = b""
    while b"up" not in text:
        text += os.read(master, 4096)
    assert termios.tcgetattr(slave)[3] != before[3]
    os.write(master, b"\x03")  # Ctrl-C belongs to the guest
    time.sleep(0.3)
    assert process.poll() is None
    os.write(master, b"\x01x\x01x")  # Ctrl-A x, twice
    assert process.wait(patience(20)) == 37
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize("kind", ["socket", "pty"])
def test_a_serial_port_on_a_socket_or_a_pty(tmp_path, kind):
    command = Command(tmp_path, ECHO, LOG_FILEPATH=tmp_path / "log")
    command.set(SERIAL=f"socket={tmp_path / 'serial'}" if kind == "socket" else "pty")
    process = subprocess.Popen([COMMAND, "start"], env=command.env, stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + patience(10)
    while command.run("status", "--json")[0] != 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    facts = json.loads(command.run("status", "--json")[1])
    path = facts["consoles"][1]["path"]
    if kind == "socket":
        link = socket.socket(socket.AF_UNIX)
        link.connect(path)
        fd = link.detach()
    else:
        fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
    os.write(fd, b"ping\n")
    text = b""
    while b"ping" not in text:
        text += os.read(fd, 100)
    os.close(fd)
    command.run("stop", "--now")
    assert process.wait(patience(20)) == 37
    if kind == "socket":
        assert text.startswith(b"up\n")  # what was said before anybody listened
        assert not os.path.exists(path)
