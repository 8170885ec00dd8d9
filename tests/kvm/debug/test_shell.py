"""`python -m vmm.shell`: a line of code, a person at a terminal, and mistakes."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from tests.support.elf_builder import build_elf
from tests.support.guest_asm import Program
from tests.support.speed import patience
from vmm.errors import UsageError
from vmm.shell import parse

SHELL = [sys.executable, "-m", "vmm.shell"]


@pytest.fixture
def kernel(tmp_path):
    path = tmp_path / "guest.elf"
    path.write_bytes(build_elf(Program().out_string(0x3F8, b"hello, prompt\n").power_off()))
    return str(path)


def shell(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SHELL, *arguments], capture_output=True, text=True, timeout=patience(60), check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_a_line_of_code(kernel):
    code = "stop = guest.run(seconds=30); print(stop.kind)\nguest.serial.text"
    done = shell(kernel, "--memory=16M", "--cpu-count", "2", "-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "ended\n'hello, prompt\\n'\n"


def test_names_of_the_prompt(kernel):
    code = "print(vmm.Guest is type(guest), np.uint8(3) + guest.memory.numpy(0, 4)[0] >= 3)"
    assert shell(kernel, "-c", code).stdout == "True True\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--memroy", "1G"], r"no option --memroy .did you mean memory"),
        (["a", "b"], "kernel is given twice"),
        (["/nonexistent/vmlinuz"], "KERNEL_FILEPATH=.*/nonexistent/vmlinuz"),
        (["/dev/null", "--cpu-count", "0"], "CPU_COUNT='0'|CPU_COUNT=0"),
        (["-x"], "no option -x"),
    ],
)
def test_bad_values_have_the_words_of_the_command(arguments, words):
    done = shell(*arguments, "-c", "1")
    assert done.returncode == 2
    assert re.search(words, done.stderr), done.stderr
    assert "Traceback" not in done.stderr


def test_without_numpy_all_else_is_there(kernel):
    code = "import sys; sys.modules['numpy'] = None; from vmm import shell; " \
        "sys.exit(shell.main(sys.argv[1:]))"  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, kernel, "-c", "'np' in globals(), guest.memory.read(0, 1)"],
        capture_output=True, text=True, timeout=patience(60), check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "(False, b'\\x00')\n"), done.stderr


def test_an_error_in_the_code_is_python_s(kernel):
    done = shell(kernel, "-c", "guest.memory.read(1 << 50, 1)")
    assert done.returncode == 1
    assert "ValueError" in done.stderr


def test_help():
    done = shell("--help")
    assert done.returncode == 0
    assert "--SETTING VALUE" in done.stdout


def test_settings_by_either_spelling():
    for words in (["--cpu-count=2"], ["--cpu_count", "2"]):
        assert parse(["k", *words]) == ({"kernel": "k", "cpu_count": "2"}, None)
    with pytest.raises(UsageError, match="cpu_count is given twice: '2' and '3'"):
        parse(["--cpu-count=2", "--cpu_count", "3"])
    with pytest.raises(UsageError, match="--memory needs a value"):
        parse(["k", "--memory"])


def leave(child: int, end: int) -> int:
    """The end of input, as often as it takes: what comes before the prompt is lost."""
    deadline = time.monotonic() + patience(60)
    while time.monotonic() < deadline:
        os.write(end, b"\x04")
        if select.select([end], [], [], 0.5)[0]:
            with suppress(OSError):
                os.read(end, 65536)
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
    raise AssertionError("the prompt does not end")


# As where IPython is not installed.
PLAIN = "import sys; sys.modules['IPython'] = None; from vmm import shell; " \
    "sys.exit(shell.main(sys.argv[1:]))"  # fmt: skip


@pytest.mark.parametrize(
    "command", [SHELL, [sys.executable, "-c", PLAIN]], ids=["as installed", "plain"]
)
def test_a_person_at_a_terminal(kernel, command):
    child, end = pty.fork()
    if child == 0:
        os.environ["TERM"] = "dumb"
        os.execv(sys.executable, [*command, kernel, "--memory", "16M"])
    heard = b""
    seen = bytearray()

    def until(words: bytes) -> None:
        nonlocal heard
        deadline = time.monotonic() + patience(60)
        while words not in heard:
            assert time.monotonic() < deadline, heard
            if select.select([end], [], [], 1)[0]:
                heard += os.read(end, 65536)
                seen[:] = heard
        heard = heard.partition(words)[2]

    try:
        until(b"standing still>")
        os.write(end, b"print('kind', guest.run(seconds=30).kind)\r")
        until(b"kind ended")
        os.write(end, b"print(len(guest.serial.text) * 1000)\r")
        until(b"14000")
        os.write(end, b"guest.breakpoint('nosuch')\r")
        until(b"no symbols of")
        # The error is that of the line, not of something that failed before the prompt.
        assert b"During handling" not in seen
        status = leave(child, end)
        child = 0
        assert status == 0
    finally:
        os.close(end)
        if child:
            os.kill(child, 9)
            os.waitpid(child, 0)
