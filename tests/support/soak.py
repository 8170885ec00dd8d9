"""A guest that reboots, writes, verifies and talks for hours, asked for its status all the while.

``python -m tests.support.soak --hours 6`` (make soak HOURS=6) prints what its process had at the
start, in the middle and at the end, and fails when that grows. Guest: journal_guest.c.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.support.command import COMMAND, Command
from tests.support.journal import journal_guest, lost, said
from tests.support.speed import patience

# A life of a little over two seconds: one that is shorter counts as a guest that cannot run.
ROUNDS = 22
SAMPLE_SECONDS = 2.0
ROTATE_SECONDS = 30.0
# So long it fills caches, free lists and the heap's gaps: measured, 1.5 MiB in the first minutes.
WARM_UP_SECONDS = 150.0
WARM_UP_PART = 0.1
# By so much the medians of the first and last fifth of what follows may differ, whatever the time
# between them: KiB, or numbers of things.
GROWTH_MAX = {"rss": 1024, "pss": 1024, "anonymous": 640, "descriptors": 0, "threads": 0, "maps": 6}
ROLLUP = {"Rss": "rss", "Pss": "pss", "Anonymous": "anonymous"}


def holdings(pid: int) -> dict[str, int]:
    """What a process has: KiB of memory by kind, and numbers of things (proc(5))."""
    proc = Path(f"/proc/{pid}")
    found = {}
    for line in (proc / "smaps_rollup").read_text().splitlines()[1:]:
        name, _, value = line.partition(":")
        if name in ROLLUP:
            found[ROLLUP[name]] = int(value.split()[0])
    found["descriptors"] = len(os.listdir(proc / "fd"))
    # The kernel has threads of its own in a process, and io_uring's come and go.
    names = [(task / "comm").read_text().strip() for task in (proc / "task").iterdir()]
    found["threads"] = len([name for name in names if not name.startswith(("iou-", "kvm-"))])
    found["maps"] = len((proc / "maps").read_text().splitlines())
    return found


def warmed_up(samples: list[dict[str, float]]) -> list[dict[str, float]]:
    """Those that count; of a short run at least the second half."""
    whole = samples[-1]["at"]
    begin = min(max(WARM_UP_SECONDS, WARM_UP_PART * whole), whole / 2)
    return [sample for sample in samples if sample["at"] >= begin]


def figures_of(samples: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """By what it is: the median at the start, in the middle and at the end, and the slope."""
    part = max(1, len(samples) // 5)
    middle = (len(samples) - part) // 2
    found = {}
    for name in GROWTH_MAX:
        values = [sample[name] for sample in samples]
        times = [sample["at"] / 3600 for sample in samples]
        found[name] = {
            "start": statistics.median(values[:part]),
            "middle": statistics.median(values[middle : middle + part]),
            "end": statistics.median(values[-part:]),
            "most": max(values),
            "per_hour": statistics.linear_regression(times, values).slope,
        }
    return found


def grown(figures: dict[str, dict[str, float]]) -> list[str]:
    """What is more at the end than at the start."""
    return [
        f"{name}: {row['start']:g} at the start, {row['end']:g} at the end"
        for name, row in figures.items()
        if row["end"] - row["start"] > GROWTH_MAX[name]
    ]


class Listener(threading.Thread):
    """Reads what the guest says, and holds it against what it said before."""

    def __init__(self, pipe) -> None:
        super().__init__(daemon=True)
        self._pipe = pipe
        self.last = self.lives = self.verified = self.bytes = 0
        self.faults: list[str] = []

    def run(self) -> None:
        for raw in self._pipe:
            self.bytes += len(raw)
            for word, number in said(raw.decode(errors="replace")):
                self.hear(word, number)

    def hear(self, word: str, number: int) -> None:
        if word in ("bad", "e"):
            self.faults.append(f"{word} {number}")
        if word == "r":
            self.lives += 1
            if number < self.last:
                self.faults.append(f"{self.last} was acknowledged, {number} is found")
        self.verified += word == "v"
        self.last = max(self.last, number)


class Soak:
    """One run in ``folder``; samples() gathers, report() judges."""

    def __init__(self, folder: Path) -> None:
        self.command = Command(folder, LOG_FILEPATH=folder / "log")
        self.command.set(KERNEL_FILEPATH=journal_guest(folder, ROUNDS))
        self.folder = folder
        self.samples: list[dict[str, float]] = []
        self.faults: list[str] = []
        self.process = subprocess.Popen(
            [COMMAND, "start"], env=self.command.env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.heard = Listener(self.process.stdout)
        self.heard.start()

    def run(self, seconds: float, each: float = SAMPLE_SECONDS, tell=None) -> None:
        began = rotated = time.monotonic()
        while time.monotonic() - began < seconds and self.process.poll() is None:
            # At any moment of a life.
            time.sleep(each * random.uniform(0.5, 1.5))
            code, text = self.command.run("status", "--json")
            if code:
                self.faults.append(f"status: {code} {text}")
            elif "running" not in json.dumps(json.loads(text)):
                self.faults.append(f"status: {text}")
            with contextlib.suppress(OSError):
                self.samples.append({"at": time.monotonic() - began, **holdings(self.process.pid)})
                if tell is not None:
                    tell(self.samples[-1], self.heard)
            if time.monotonic() - rotated > ROTATE_SECONDS:
                rotated = time.monotonic()
                os.rename(self.folder / "log", self.folder / "log.1")
                self.process.send_signal(signal.SIGHUP)

    def end(self) -> None:
        if self.process.poll() is not None:
            self.faults.append(f"ended by itself with {self.process.returncode}")
        else:
            self.command.run("stop", "--now")
        self.process.wait(patience(20))
        self.heard.join(patience(20))
        self.faults += self.heard.faults
        missing = lost((self.folder / "system.img").read_bytes(), self.heard.last)
        if missing:
            self.faults.append(f"records that are lost: {missing}")

    def problems(self) -> list[str]:
        return self.faults + grown(figures_of(warmed_up(self.samples)))

    def text(self) -> str:
        lines = [
            f"{self.samples[-1]['at'] / 60:.1f} min, {len(self.samples)} samples, "
            f"{self.heard.lives} lives, {self.heard.verified} of them verified their disk, "
            f"{self.heard.last} records, {self.heard.bytes >> 10} KiB said"
        ]
        for name, row in figures_of(warmed_up(self.samples)).items():
            words = "  ".join([f"{key} {value:10.1f}" for key, value in row.items()])
            lines.append(f"{name:12} {words}")
        return "\n".join(lines + [f"problem: {problem}" for problem in self.problems()])


def soak(folder: Path, seconds: float, tell=None) -> Soak:
    """A whole run of so many seconds."""
    run = Soak(folder)
    try:
        run.run(seconds, tell=tell)
    finally:
        run.end()
    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=6.0)
    parser.add_argument("--samples", type=Path, help="write each sample there, as JSON lines")
    asked = parser.parse_args()

    def tell(sample: dict[str, float], heard: Listener) -> None:
        if asked.samples:
            with open(asked.samples, "a", encoding="ascii") as file:
                file.write(json.dumps({**sample, "lives": heard.lives}) + "\n")

    with tempfile.TemporaryDirectory() as name:
        run = soak(Path(name), asked.hours * 3600, tell)
    print(run.text())
    return 1 if run.problems() else 0


if __name__ == "__main__":
    sys.exit(main())
