"""`stop` and `status`: what another process asks of an instance, or learns about a dead one."""

from __future__ import annotations

import _signal
import os
import select
import time

from vmm.errors import HostError
from vmm.run.control import ask
from vmm.run.instance import process_start_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from vmm.run.instance import Holder, Instance

EXIT_NOT_RUNNING = 3
EXIT_UNKNOWN = 4
EXIT_KILLED = 37
# A starting instance has no control socket yet.
SOCKET_WAIT_SECONDS = 10.0
# How much longer than the guest's own time a stop waits before it kills a VMM that hangs.
GRACE_SECONDS = 5.0
STOP_TIMEOUT_DEFAULT = 25.0
STOPPED_STATES = ("stopped", "failed")
UNEXPLAINED = "the process ended without a word (killed?)"


def stop(instance: Instance, now: bool = False) -> tuple[int, str]:
    """Stop an instance and wait for its end: (exit code, what happened)."""
    holder = instance.holder()
    if holder is None:
        return 0, f"{instance.name}: not running"
    pidfd = _open_process(holder)
    if pidfd is None:
        return 0, f"{instance.name}: stopped by itself"
    try:
        timeout = _request_stop(instance, now)
        if not _wait(pidfd, timeout + GRACE_SECONDS):
            _signal.pidfd_send_signal(pidfd, _signal.SIGKILL)
            _wait(pidfd, None)
            return EXIT_KILLED, (
                f"{instance.name}: process {holder.pid} did not end within "
                f"{timeout + GRACE_SECONDS:g} s and was killed"
            )
    finally:
        os.close(pidfd)
    state = instance.read_state() or {}
    last = state.get("last_exit")
    if state.get("pid") != holder.pid or not last:
        return EXIT_KILLED, f"{instance.name}: {UNEXPLAINED}"
    return last["code"], f"{instance.name}: stopped: {last['reason']}"


def _open_process(holder: Holder) -> int | None:
    """A pidfd of the holder; None when it has ended already."""
    try:
        pidfd = os.pidfd_open(holder.pid)
    except ProcessLookupError:
        return None
    if process_start_time(holder.pid) != holder.start_time:
        os.close(pidfd)
        return None
    return pidfd


def _request_stop(instance: Instance, now: bool) -> float:
    """Send the request; returns the seconds that the guest gets, also when nobody answers."""
    deadline = time.monotonic() + SOCKET_WAIT_SECONDS
    while True:
        try:
            answer = ask(instance.socket_path, {"command": "stop", "now": now})
            return 0.0 if now else float(answer.get("timeout_s", STOP_TIMEOUT_DEFAULT))
        except (FileNotFoundError, ConnectionRefusedError):
            if instance.holder() is None or time.monotonic() > deadline:
                return 0.0
            time.sleep(0.05)
        except PermissionError as error:
            raise HostError(
                f"{instance.socket_path}: {error.strerror}", "use the user who started it"
            ) from error
        except OSError:
            return 0.0  # it closed the connection or does not answer; waiting decides


def _wait(pidfd: int, seconds: float | None) -> bool:
    """True when the process ended in time."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(None if seconds is None else seconds * 1000))


def status(instance: Instance) -> tuple[int, dict[str, Any]]:
    """(exit code, facts) of an instance, alive or dead."""
    holder = instance.holder()
    if holder is None:
        return EXIT_NOT_RUNNING, _dead_status(instance)
    try:
        return 0, ask(instance.socket_path, {"command": "status"})
    except FileNotFoundError:
        return 0, {"name": instance.name, "state": "starting", "pid": holder.pid}
    except OSError as error:
        facts = {"name": instance.name, "state": "unknown", "pid": holder.pid}
        return EXIT_UNKNOWN, {**facts, "error": f"process {holder.pid} does not answer: {error}"}


def _dead_status(instance: Instance) -> dict[str, Any]:
    owner = instance.last_owner()
    if owner is None:
        return {"name": instance.name, "state": "stopped", "last_exit": None}
    facts = instance.read_state() or {}
    if facts.get("pid") != owner.pid:
        # Killed before it wrote its first state.
        facts = {"name": instance.name, "pid": owner.pid, "start_time": owner.start_time}
    if facts.get("state") not in STOPPED_STATES:
        facts["state"] = "failed"
        facts["last_exit"] = {"code": None, "reason": UNEXPLAINED, "time": None}
    return facts


def describe(facts: dict[str, Any]) -> str:
    """`status` as text, in the manner of systemctl."""
    state = facts["state"]
    head = f"{facts['name']}: {state}"
    if facts.get("pid") and state not in STOPPED_STATES:
        head += f", process {facts['pid']}"
    if "started_at" in facts:
        head += f", started {facts['started_at']}, up {facts['uptime_s']:.0f} s"
    lines = [head]
    if facts.get("reboots"):
        lines.append(f"  reboots: {facts['reboots']}")
    if "kernel" in facts:
        lines.append(f"   kernel: {facts['kernel']}")
    if "memory" in facts:
        memory = facts["memory"]
        huge = f", {memory['hugepage_size'] >> 10} KiB pages" if memory["hugepage_size"] else ""
        shared = "shared" if memory["shared"] else "private"
        lines.append(f"   memory: {memory['size'] >> 20} MiB, {shared}{huge}")
        lines.append(f"    vCPUs: {len(facts['vcpus'])}")
    for disk in facts.get("disks", ()):
        access = "read-only" if disk["read_only"] else "read-write"
        lines.append(f"     disk: {disk['path']}, {disk['size'] >> 20} MiB, {access}")
    for console in facts.get("consoles", ()):
        where = f" {console['path']}" if console["path"] else ""
        lines.append(f"  console: {console['kind']}{where}")
    if facts.get("exits"):
        counts = ", ".join([f"{name} {count}" for name, count in facts["exits"].items()])
        lines.append(f"    exits: {counts}")
    last = facts.get("last_exit")
    if last:
        code = "" if last["code"] is None else f" (code {last['code']})"
        lines.append(f"     last: {last['reason']}{code} {last['time'] or ''}".rstrip())
    if "error" in facts:
        lines.append(f"    error: {facts['error']}")
    return "\n".join(lines)
