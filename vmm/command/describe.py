"""`status` as text, in the manner of systemctl. A fact of another type than it has is left out."""

from __future__ import annotations

from vmm.command.facts import last_exit
from vmm.light.printable import visible
from vmm.run.status import ENDED_STATES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# So many of a kind are shown; --json has all.
ROWS_MAX = 100
INTERFACES_MAX = 4


def describe(facts: dict[str, Any]) -> str:
    """All lines about one instance, each fit to be printed."""
    lines: list[str] = []
    for rows in (
        _head,
        _reboots,
        _kernel,
        _memory,
        _disks,
        _consoles,
        _confined,
        _exits,
        _last,
        _error,
    ):
        lines += _tried(rows, facts)
    return "\n".join([visible(line) for line in lines])


def _tried(rows: Callable[[dict[str, Any]], list[str]], facts: dict[str, Any]) -> list[str]:
    try:
        return rows(facts)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
        return [f"  {rows.__name__.strip('_'):>7}: not understood"]


def _head(facts: dict[str, Any]) -> list[str]:
    state = facts["state"]
    head = f"{facts['name']}: {state}"
    if facts.get("pid") and state not in ENDED_STATES:
        head += f", process {facts['pid']}"
    if "started_at" in facts:
        head += f", started {facts['started_at']}, up {facts['uptime_s']:.0f} s"
    return [head]


def _reboots(facts: dict[str, Any]) -> list[str]:
    return [f"  reboots: {facts['reboots']}"] if facts.get("reboots") else []


def _kernel(facts: dict[str, Any]) -> list[str]:
    return [f"   kernel: {facts['kernel']}"] if "kernel" in facts else []


def _memory(facts: dict[str, Any]) -> list[str]:
    if "memory" not in facts:
        return []
    memory = facts["memory"]
    huge = f", {memory['hugepage_size'] >> 10} KiB pages" if memory["hugepage_size"] else ""
    if memory.get("huge_refused"):
        huge = f", 4 KiB pages ({memory['huge_refused']})"
    shared = "shared" if memory["shared"] else "private"
    size = f"{memory['size'] >> 20} MiB"
    return [f"   memory: {size}, {shared}{huge}", f"    vCPUs: {len(facts['vcpus'])}"]


def _disks(facts: dict[str, Any]) -> list[str]:
    rows = []
    for disk in facts.get("disks", [])[:ROWS_MAX]:
        access = "read-only" if disk["read_only"] else "read-write"
        rows.append(f"     disk: {disk['path']}, {disk['size'] >> 20} MiB, {access}")
    return rows


def _consoles(facts: dict[str, Any]) -> list[str]:
    rows = []
    for name, console in zip(("console", "serial"), facts.get("consoles", []), strict=False):
        where = f" {console['path']}" if console["path"] else ""
        rows.append(f"{name:>9}: {console['kind']}{where}")
    return rows


def _confined(facts: dict[str, Any]) -> list[str]:
    if not isinstance(facts.get("confinement"), dict):
        return []
    found = facts["confinement"]
    files = f"by Landlock {found['landlock']}" if found["landlock"] else "open"
    kept = ", ".join(found["capabilities"]) or "none"
    row = f" confined: system calls {found['seccomp']}, files {files}, capabilities {kept}"
    if found.get("network") is not None:
        row += f", network {' '.join(found['network'][:INTERFACES_MAX]) or 'none'}"
    return [row + (", may be attached to" if found["attach"] else "")]


def _exits(facts: dict[str, Any]) -> list[str]:
    if not facts.get("exits"):
        return []
    counts = [f"{name} {count}" for name, count in list(facts["exits"].items())[:ROWS_MAX]]
    return [f"    exits: {', '.join(counts)}"]


def _last(facts: dict[str, Any]) -> list[str]:
    last = last_exit(facts)
    if last is None:
        return []
    code = "" if last["code"] is None else f" (code {last['code']})"
    return [f"     last: {last['reason']}{code} {last['time'] or ''}".rstrip()]


def _error(facts: dict[str, Any]) -> list[str]:
    return [f"    error: {facts['error']}"] if "error" in facts else []
