"""The examples that need a Linux guest: several questions to one boot, and each one by itself."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import vmm
from tests.lab.guests.guest_run import WORK, expect
from tests.support.speed import patience

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "examples"


def example(name: str) -> Any:
    """The module of an example."""
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    return importlib.import_module(name)


def one_boot(kernel: str, initramfs: str, system: str, config: str) -> str:
    """List the processes of one guest, count its system calls, write down its exits."""
    counting, listing, guests = map(example, ("count_system_calls", "list_processes", "guests"))
    keywords = guests.settings((kernel, initramfs), system_image=system, config_image=config)
    with vmm.Guest(**keywords) as guest, guest.trace:
        stop = guest.run(until="start_kernel", seconds=patience(200))
        expect(stop.symbol == "start_kernel", str(stop))
        names = {number: counting.name_of(guest, number) for number in range(450)}
        guest.serial.expect(guests.GREETING, patience(200))
        guest.run(until="schedule", seconds=patience(60))
        told = _processes(list(listing.processes(guest)))
        calls = counting.count(guest)
        told += _calls({names.get(number, str(number)): n for number, n in calls.items()})
        guest.trace.stop()
        # Not its summary: the lab's processor has less than numpy was built for.
        expect(len(guest.trace) > 10_000, f"{guest.trace}")
        return f"{told}{guest.trace}\n{guest.serial.text[-600:]}"


def _processes(rows: list[tuple[int, int, str, bool]]) -> str:
    by_pid = {pid: (parent, name, own) for pid, parent, name, own in rows}
    text = "\n".join(map(str, rows))
    expect(by_pid.get(0, ("", "", False))[1:] == ("swapper/0", True), text)
    expect(by_pid.get(2) == (0, "kthreadd", True), text)
    expect(by_pid.get(1, (1, "", True))[::2] == (0, False), text)
    threads = [own for parent, _, own in by_pid.values() if parent == 2]
    expect(len(threads) > 10 and all(threads), text)
    return text + "\n"


def _calls(calls: dict[str, int]) -> str:
    expect({"execve", "read", "write", "wait4", "exit_group"} <= set(calls), f"{calls}")
    expect(calls["execve"] >= 3, f"{calls}")
    return f"{calls}\n"


def by_itself(script: str, arguments: list[str], words: list[str], returns: int = 0) -> str:
    """One example as a person runs it; what it says must have these words."""
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / f"{script}.py"), *arguments],
            cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
            text=True, timeout=patience(900), check=False,
        )  # fmt: skip
        said = done.stdout + done.stderr
        expect(done.returncode == returns, said)
        for word in words:
            expect(word in done.stdout, f"{word!r} is missing in: {said}")
        return said + " ".join(sorted(os.listdir(folder)))
