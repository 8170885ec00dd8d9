"""Debian's gdb as the client: in batch mode, and one that stays and is typed to."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import time

from tests.support.speed import patience

GDB = shutil.which("gdb")
PROMPT = rb"\(gdb\) $"
# gdb's own 2 s are short for a guest of many threads on a busy machine.
REPLY_SECONDS = 60
# Python's variables would reach gdb's own interpreter.
QUIET = [
    "-nx", "-q", "-ex", "set confirm off", "-ex", "set pagination off", "-ex", "set width 0",
    "-ex", "set style enabled off", "-ex", f"set remotetimeout {REPLY_SECONDS}",
]  # fmt: skip


def environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LC_ALL": "C.UTF-8", "TERM": "dumb"}


def batch(address: str, *commands: str, file: str = "", seconds: float = 60) -> str:
    """What gdb prints to these commands, attached to ``address``; it detaches at its end."""
    assert GDB is not None, "gdb is missing: apt-get install gdb"
    words = [GDB, *QUIET, "-batch", *([file] if file else [])]
    for command in (f"target remote {address}", *commands):
        words += ["-ex", command]
    done = subprocess.run(
        words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL, timeout=patience(seconds), check=False,
    )  # fmt: skip
    return done.stdout.decode(errors="replace")


def heed_interrupts() -> None:
    """In the child: a shell's background jobs ignore them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Gdb:
    """One that stays. A context manager; type() waits for the prompt."""

    def __init__(self, address: str, file: str = "") -> None:
        assert GDB is not None, "gdb is missing: apt-get install gdb"
        self.process = subprocess.Popen(
            [GDB, *QUIET, *([file] if file else [])], env=environment(), bufsize=0,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True, preexec_fn=heed_interrupts,
        )  # fmt: skip
        self.expect()
        self.attached = self.type(f"target remote {address}")
        assert "Remote debugging using" in self.attached, self.attached

    def send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")

    def expect(self, pattern: bytes = PROMPT, seconds: float = 30) -> str:
        """Everything until the pattern has come."""
        assert self.process.stdout is not None
        text, deadline = b"", time.monotonic() + patience(seconds)
        while not re.search(pattern, text):
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self.process.stdout], [], [], max(left, 0))
            assert ready, text
            data = os.read(self.process.stdout.fileno(), 65536)
            assert data, text
            text += data
        return text.decode(errors="replace")

    def type(self, line: str, seconds: float = 30) -> str:
        self.send(line)
        return self.expect(seconds=seconds)

    def interrupt(self) -> None:
        """As Ctrl-C typed at its terminal, a moment after it has let the guest go on."""
        # Sooner gdb has not begun to wait, and forgets it.
        time.sleep(0.3)
        self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """Gone without a word."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Gdb:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
