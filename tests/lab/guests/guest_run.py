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

from tests.lab.rig.flaw import FlawWatch, LabFlaw, StillWatch, lost_for_good, waits_for_itself
from tests.lab.rig.vcpus import Vcpus
from tests.support.binary import command
from tests.support.speed import patience

COMMAND = command()
WORK = Path("/dev/shm")


class Guest:
    """`vllmd-hypervisor start` with settings by their short names, e.g. ``CPU_COUNT=2``.

    Its stdout and stderr go to a file; ``text`` is what is there by now.
    """

    def __init__(self, **settings: object) -> None:
        self.command = [COMMAND]
        self.folder = Path(tempfile.mkdtemp(prefix="guest-", dir=WORK))
        self.output = self.folder / "output"
        self._text, self._known = "", (0, -1)
        self.env = {**os.environ, "HOME": "/root"}
        for name, value in settings.items():
            self.env[f"VLLMD_HYPERVISOR_{name}"] = str(value)
        self.process: subprocess.Popen[bytes] | None = None
        self._vcpus = Vcpus(lambda: self.verb("status", "--json")[1])
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
        """Read when there is more of it: who waits asks often, on the guest's own processor."""
        found = self.output.stat()
        known = (found.st_ino, found.st_size)
        if known != self._known:
            self._text = self.output.read_text(errors="replace").replace("\r", "")
            self._known = known
        return self._text

    def wait(self, timeout: float = 300) -> int:
        """Its exit code; everything it printed when it does not end."""
        assert self.process is not None
        patient = Patience(self, timeout)
        while (code := self.process.poll()) is None:
            patient.tick("no end")
        if reason := lost_for_good(self.text, self.may_triple_fault):
            print(self.text[-3000:])
            raise LabFlaw(reason)
        return code

    @property
    def single(self) -> bool:
        """Whether it has one processor, so that nobody else can hold a lock."""
        return self.env.get("VLLMD_HYPERVISOR_CPU_COUNT") == "1"

    def reports(self) -> list[str]:
        """Where its vCPUs are now; empty when its VMM does not tell."""
        if self.process is None or self.process.poll() is not None:
            return []
        return self._vcpus.reports(self.process.pid)

    def run(self, timeout: float = 300) -> int:
        """Start it and wait for its end."""
        return self.start().wait(timeout)

    def until(self, words: str, timeout: float = 300) -> str:
        """Wait for ``words`` in the output; returns all of it."""
        assert self.process is not None
        patient = Patience(self, timeout)
        while words not in self.text:
            if self.process.poll() is not None:
                raise AssertionError(f"ended before {words!r}:\n{self.text}")
            patient.tick(f"no {words!r}")
        return self.text

    def verb(self, *arguments: str, timeout: float = 120) -> tuple[int, str]:
        """Run another verb under the same environment: (exit code, output)."""
        done = subprocess.run(
            [*self.prefix, *self.command, *arguments], env=self.env, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=patience(timeout), check=False,
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


class Patience:
    """Of one who waits for a guest: tick() sleeps a moment, and ends the guest when time is up."""

    def __init__(self, guest: Guest, seconds: float) -> None:
        self._guest = guest
        self._seconds = patience(seconds)
        self._deadline = time.monotonic() + self._seconds
        self._faults = FlawWatch()
        self._still = StillWatch(lambda: guest.text, guest.reports)

    def tick(self, complaint: str) -> None:
        guest = self._guest
        try:
            self._faults.check()
            if guest.single:
                if reason := waits_for_itself(guest.text):
                    raise LabFlaw(reason)
                self._still.check()
        except LabFlaw:
            print(guest.text[-3000:])
            guest.close()
            raise
        if time.monotonic() > self._deadline:
            evidence = [guest.text, guest.verb("status", "--json")[1], *guest.reports()]
            guest.close()
            raise AssertionError("\n".join([f"{complaint} after {self._seconds:g} s:", *evidence]))
        time.sleep(0.1)


def expect(condition: object, text: str) -> None:
    """AssertionError with the guest's output, so that a failure in the lab can be understood."""
    if not condition:
        raise AssertionError(text)
