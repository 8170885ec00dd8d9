"""Inside the lab: an instance of the real command, with what it printed and how it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.lab.rig.flaw import ENTRY_FAULT, LOCK_WAIT, FlawWatch, LabFlaw
from tests.support.binary import command

COMMAND = command()
WORK = Path("/dev/shm")
TRIPLE_FAULT = "the guest triple-faulted"


class Guest:
    """`vllmd-hypervisor start` with settings by their short names, e.g. ``CPU_COUNT=2``.

    Its stdout and stderr go to a file; ``text`` is what is there by now.
    """

    def __init__(self, **settings: object) -> None:
        self.command = [COMMAND]
        self.folder = Path(tempfile.mkdtemp(prefix="guest-", dir=WORK))
        self.output = self.folder / "output"
        self.env = {**os.environ, "HOME": "/root"}
        for name, value in settings.items():
            self.env[f"VLLMD_HYPERVISOR_{name}"] = str(value)
        self.process: subprocess.Popen[bytes] | None = None
        # Set by a scenario that runs it as another user: a command that runs the rest.
        self.prefix: list[str] = []
        # Set by a scenario whose guest does that on purpose.
        self.may_triple_fault = False

    def start(self) -> Guest:
        """Start it in the background."""
        with open(self.output, "ab") as output:
            self.process = subprocess.Popen(
                [*self.prefix, *self.command, "start"], env=self.env, stdin=subprocess.DEVNULL,
                stdout=output, stderr=output,
            )  # fmt: skip
        return self

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace").replace("\r", "")

    def wait(self, timeout: float = 300) -> int:
        """Its exit code; everything it printed when it does not end."""
        assert self.process is not None
        deadline = time.monotonic() + timeout
        watch = FlawWatch()
        while (code := self.process.poll()) is None:
            self._tick(watch, deadline, f"no end after {timeout} s")
        if TRIPLE_FAULT in self.text and not self.may_triple_fault:
            print(self.text[-3000:])
            raise LabFlaw(TRIPLE_FAULT)
        if ENTRY_FAULT in self.text:
            print(self.text[-3000:])
            raise LabFlaw("interrupted where interrupts are off")
        return code

    def _tick(self, watch: FlawWatch, deadline: float, complaint: str) -> None:
        watch.check()
        if self.env.get("VLLMD_HYPERVISOR_CPU_COUNT") == "1" and LOCK_WAIT in self.text:
            self.close()
            raise LabFlaw("its only processor waits for a lock")
        if time.monotonic() > deadline:
            status = self.verb("status", "--json")[1]
            self.close()
            raise AssertionError(f"{complaint}:\n{self.text}\n{status}")
        time.sleep(0.1)

    def run(self, timeout: float = 300) -> int:
        """Start it and wait for its end."""
        return self.start().wait(timeout)

    def until(self, words: str, timeout: float = 300) -> str:
        """Wait for ``words`` in the output; returns all of it."""
        assert self.process is not None
        deadline = time.monotonic() + timeout
        watch = FlawWatch()
        while words not in self.text:
            if self.process.poll() is not None:
                raise AssertionError(f"ended before {words!r}:\n{self.text}")
            self._tick(watch, deadline, f"no {words!r} after {timeout} s")
        return self.text

    def verb(self, *arguments: str, timeout: float = 120) -> tuple[int, str]:
        """Run another verb under the same environment: (exit code, output)."""
        done = subprocess.run(
            [*self.prefix, *self.command, *arguments], env=self.env, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=timeout, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.verb("status", "--json")[1])
        return found

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def close(self) -> None:
        """End it, however it is."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def expect(condition: object, text: str) -> None:
    """AssertionError with the guest's output, so that a failure in the lab can be understood."""
    if not condition:
        raise AssertionError(text)
