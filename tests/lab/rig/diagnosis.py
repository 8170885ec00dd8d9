"""Inside the lab: what a job that ran out of time was doing."""

from __future__ import annotations

import time
from pathlib import Path

COUNTERS = Path("/sys/kernel/debug/kvm")


def counters() -> dict[str, int]:
    """KVM's counters over all VMs; empty where debugfs is not mounted."""
    found = {}
    for path in COUNTERS.glob("*"):
        try:
            found[path.name] = int(path.read_text())
        except (OSError, ValueError):
            continue
    return found


def threads(group: int) -> list[str]:
    """One line for each thread of a process group: its state and where in the kernel it waits."""
    lines = []
    for task in sorted(Path("/proc").glob("[0-9]*/task/[0-9]*")):
        try:
            fields = (task / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                ticks = int(fields[11]) + int(fields[12])
                name, wait = (task / "comm").read_text().strip(), (task / "wchan").read_text()
                lines.append(f"  {task.name} {name}: {fields[0]} {wait} {ticks} ticks")
        except OSError:
            continue
    return lines


def describe(group: int, seconds: float = 2.0) -> str:
    """Threads, and what KVM counted within ``seconds``."""
    before = counters()
    time.sleep(seconds)
    counted = [
        f"  {name} +{value - before.get(name, 0)}"
        for name, value in sorted(counters().items())
        if value != before.get(name, 0)
    ]
    return "\n".join(
        ["lab: out of time; threads:", *threads(group), f"kvm, {seconds} s:", *counted, ""]
    )
