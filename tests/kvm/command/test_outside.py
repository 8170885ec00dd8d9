"""Ends of the world outside that sleep, vanish, or belong to somebody else."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import socket
import subprocess
import time

import pytest

from tests.kvm.command.test_terminal import ECHO
from tests.support.command import COMMAND, HALT, Command
from tests.support.guest_asm import Program
from tests.support.speed import patience


def flood(extra: int = 0) -> bytes:
    """Line feeds without end; by ``extra`` the terminal is left with room for one byte or none."""
    start = b"up" + b"." * extra + b"\n"
    return bytes(Program().out_string(0x3F8, start).raw("66baf803 b00a ee ebfd").code)


# Time for the terminal to go away, then a clean end.
BYE = (
    Program().out_string(0x3F8, b"up\n").raw("b900100000 e2fe").out_string(0x3F8, b"bye\n")
).power_off()


class OnTerminal:
    """The command on a pseudo-terminal whose other side is ours. A context manager."""

    def __init__(self, command: Command, *words: str, session: bool = True) -> None:
        self.command = command
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            words or [COMMAND, "start"], env=command.env, stdin=slave, stdout=slave, stderr=slave,
            start_new_session=session,
        )  # fmt: skip
        os.close(slave)
        self.text = b""

    def until(self, wanted: bytes, seconds: float = 20) -> bytes:
        """What is shown up to ``wanted``."""
        deadline = time.monotonic() + seconds
        while wanted not in self.text:
            assert time.monotonic() < deadline, self.text
            if select.select([self.master], [], [], 0.1)[0]:
                self.text += os.read(self.master, 1 if wanted == b"up" else 4096)
        shown, _, self.text = self.text.partition(wanted)
        return shown

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def hang_up(self) -> None:
        if self.master >= 0:
            os.close(self.master)
            self.master = -1

    def __enter__(self) -> OnTerminal:
        return self

    def __exit__(self, *exception: object) -> None:
        self.hang_up()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1)
        self.process.kill()
        self.process.wait()


@pytest.mark.waits
@pytest.mark.parametrize("extra", [0, 1])
def test_a_terminal_that_nobody_reads(tmp_path, extra):
    command = Command(tmp_path, flood(extra), STOP_TIMEOUT_SECONDS=1)
    command.set(CONSOLE="tty", LOG_FILEPATH=tmp_path / "log")
    with OnTerminal(command) as terminal:
        terminal.until(b"up")
        time.sleep(2)
        assert command.run("status")[0] == 0
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.process.wait(patience(20)) == 37
        assert "did not shut down within" in command.run("status")[1]


@pytest.mark.waits
def test_a_pipe_that_nobody_reads(tmp_path):
    command = Command(tmp_path, flood(), CONSOLE="tty", STOP_TIMEOUT_SECONDS=1)
    process = command.start()
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(patience(20)) == 37
    process.stdout.close()


@pytest.mark.parametrize("controlling", [False, True])
def test_a_terminal_that_is_gone_does_not_change_the_guest_s_end(tmp_path, controlling):
    """With the controlling terminal comes SIGHUP, which is a reload."""
    command = Command(tmp_path, BYE, CONSOLE="tty")
    words = ("setsid", "--ctty", COMMAND, "start") if controlling else ()
    with OnTerminal(command, *words, session=not controlling) as terminal:
        terminal.until(b"up")
        terminal.hang_up()
        assert terminal.process.wait(patience(60)) == 0
    code, text = command.run("status")
    assert code == 3
    assert "the guest powered itself off (code 0)" in text


def test_a_failure_is_an_exit_code_without_a_terminal_as_well(tmp_path):
    command = Command(tmp_path, HALT, LOG_FILEPATH=tmp_path / "log")
    with OnTerminal(command) as terminal:
        terminal.until(b"up")
        other = subprocess.Popen([COMMAND, "start"], env=command.env, stderr=terminal.master)
        assert other.wait(patience(20)) == 39
        terminal.type(b"\x01x\x01x")
        assert terminal.process.wait(patience(20)) == 37


def test_two_consoles_on_a_terminal(tmp_path):
    command = Command(tmp_path, ECHO, CONSOLE="tty", LOG_FILEPATH=tmp_path / "log")
    with OnTerminal(command) as terminal:
        told = terminal.until(b"up")
        assert b"Ctrl-A h" in told
        assert b"goes to the serial port (ttyS0)" in told
        terminal.type(b"abcdefghijklmnopqrst.")
        assert terminal.until(b".").strip() == b"abcdefghijklmnopqrst"
        terminal.type(b"\x01h")
        assert b"power button" in terminal.until(b"Ctrl-A Ctrl-A")
        terminal.type(b"\x01cfor hvc0\x01cback.")
        assert b"for hvc0" not in terminal.until(b"back.")
        terminal.type(b"\x01x\x01x")
        assert terminal.process.wait(patience(20)) == 37


class Shell(OnTerminal):
    """An interactive shell, whose jobs have process groups of their own."""

    def __init__(self, command: Command) -> None:
        command.env["PS1"] = "$ "
        super().__init__(
            command, "setsid", "--ctty", "--wait", "bash", "--norc", "-i", session=False
        )

    def __exit__(self, *exception: object) -> None:
        self.command.run("stop", "--now")
        super().__exit__(*exception)


def test_a_job_in_the_background(tmp_path):
    """It runs on, the shell has the terminal, and after `fg` the guest has it."""
    with Shell(Command(tmp_path, ECHO, LOG_FILEPATH=tmp_path / "log")) as terminal:
        terminal.until(b"$ ")
        terminal.type(f"stty tostop; {COMMAND} start &\n".encode())
        assert b"in the background" in terminal.until(b"\nup")
        terminal.type(b"jobs; echo 'mi'ne\n")
        assert b"Running" in terminal.until(b"mine")
        terminal.type(b"fg\n")
        terminal.until(b"start")
        time.sleep(1.5)
        terminal.type(b"guest.")
        terminal.until(b"guest.")
        terminal.type(b"\x01x\x01x")
        terminal.until(b"$ ")
        terminal.type(b"echo code=$?\n")
        terminal.until(b"code=37")
        terminal.type(b"stty -a; exit\n")
        assert b" icanon" in terminal.until(b"echoke")


@pytest.mark.parametrize("setting", ["LOG_FILEPATH", "CONSOLE"])
def test_a_fifo_without_a_reader(tmp_path, setting):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    command = Command(tmp_path)
    command.set(**{setting: fifo if setting == "LOG_FILEPATH" else f"file={fifo}"})
    code, text = command.run("check")
    assert "what nobody reads in time is lost" in text
    assert code == 0
    assert command.run("start")[0] == 0


@pytest.mark.parametrize("setting", ["SYSTEM_IMAGE", "CONFIG_IMAGE", "KERNEL", "INITRAMFS"])
def test_a_fifo_in_place_of_a_file(tmp_path, setting):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    command = Command(tmp_path).set(**{f"{setting}_FILEPATH": fifo})
    for verb in ("check", "start"):
        code, text = command.run(verb)
        assert code == 2
        assert str(fifo) in text


def test_asking_does_not_end_what_waits_for_a_fifo(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    command = Command(tmp_path, LOG_FILEPATH=fifo)
    reader = subprocess.Popen(["cat", str(fifo)], stdout=subprocess.PIPE)
    time.sleep(0.3)
    command.run("check")
    time.sleep(0.3)
    assert reader.poll() is None
    assert command.run("start")[0] == 0
    assert b"powered itself off" in reader.communicate(timeout=patience(20))[0]


@pytest.mark.parametrize("kind", ["socket", "folder"])
def test_check_and_start_refuse_the_same_places(tmp_path, kind):
    place = tmp_path / "p"
    if kind == "folder":
        place.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(place))
    command = Command(tmp_path, SERIAL=f"file={place}")
    for verb in ("check", "start"):
        code, text = command.run(verb)
        assert code == 38
        assert f"console file {place}: " in text
        assert ("it is a socket" in text) == (kind == "socket")


def test_a_full_console_file_replaces_no_image(tmp_path):
    command = Command(tmp_path, CONSOLE=f"file={tmp_path / 'c'},keep=3")
    image = tmp_path / "c.3"
    (tmp_path / "system.img").rename(image)
    command.set(SYSTEM_IMAGE_FILEPATH=image)
    for verb in ("check", "start"):
        code, text = command.run(verb)
        assert code == 38
        assert f"would be renamed over {image}" in text


def test_a_start_and_a_check_leave_a_console_s_client_alone(tmp_path):
    path = tmp_path / "s"
    command = Command(tmp_path, ECHO, SERIAL=f"socket={path}", LOG_FILEPATH=tmp_path / "log")
    first = subprocess.Popen([COMMAND, "start"], env=command.env, stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + patience(10)
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    try:
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(str(path))
            link.settimeout(patience(10))
            (tmp_path / "b").mkdir()
            other = Command(tmp_path / "b", SERIAL=f"socket={path}")
            for verb in ("check", "start"):
                code, text = other.run(verb)
                assert code == 38
                assert "already in use" in text
            link.sendall(b"ping.")
            text = b""
            while not text.endswith(b"ping."):
                data = link.recv(100)
                assert data, text
                text += data
    finally:
        command.run("stop", "--now")
    assert first.wait(patience(20)) == 37
