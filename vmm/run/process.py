"""Another process: a descriptor of it, and what the kernel tells of it (proc(5), cgroups(7))."""

from __future__ import annotations

import os
import select

from vmm.host.files import HOST
from vmm.host.processes import is_stopped, process_start_time

GROUPS = "/sys/fs/cgroup"
# Files that tell a frozen control group, of the second and of the first version.
FREEZERS = (("", "cgroup.freeze", "1"), ("freezer", "freezer/freezer.state", "FROZEN"))


class Process:
    """A process by a descriptor, so that no other that gets its pid later is meant. close() it."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self._pidfd = pidfd

    def send(self, number: int) -> None:
        """Send a signal; nothing happens when it has ended."""
        import _signal

        try:
            _signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return

    def wait(self, seconds: float) -> bool:
        """True when it ended in time."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(max(0.0, seconds) * 1000))

    def held(self) -> str:
        """What keeps it from running, and how that ends; empty when nothing does."""
        if is_stopped(self.pid):
            return f"is stopped by a signal: `kill -CONT {self.pid}` lets it go on"
        for path, frozen in _freezers(self.pid):
            if _text(path).strip() == frozen:
                return f"is frozen with its control group ({path})"
        return ""

    def unit(self) -> str:
        """The service of the manager's that it is in; empty when this process is in the same."""
        unit = _unit(str(self.pid))
        return unit if unit != _unit("self") else ""

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._pidfd)


def open_process(pid: int, uid: int, start_time: int | None = None) -> Process | None:
    """A living process of that user (all of its ids), and of that start time."""
    try:
        process = Process(pid, os.pidfd_open(pid))
    except (OSError, OverflowError):
        return None
    # Whatever /proc says is of this process only if it still lives afterwards.
    same = start_time in (None, process_start_time(pid))
    users = _text(f"/proc/{pid}/status").partition("\nUid:")[2].split()[:4]
    if same and users == [str(uid)] * 4 and not process.wait(0):
        return process
    process.close()
    return None


def _text(path: str) -> str:
    return HOST.text(path) or ""


def _groups(pid: str) -> list[tuple[str, str]]:
    """(controllers, path) of its control groups: ``0::/vllmd.slice/vllmd-hypervisor@a.service``."""
    rows = [line.split(":", 2) for line in _text(f"/proc/{pid}/cgroup").splitlines()]
    return [(row[1], row[2]) for row in rows if len(row) == 3]


def _freezers(pid: int) -> list[tuple[str, str]]:
    """(file, its content when frozen) of all groups above it."""
    found = []
    for controller, path in _groups(str(pid)):
        for named, file, frozen in FREEZERS:
            if controller == named:
                folder, _, name = file.rpartition("/")
                parts = path.strip("/").split("/")
                above = ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]
                found += [(os.path.join(GROUPS, folder, one, name), frozen) for one in above]
    return found


def _unit(pid: str) -> str:
    for _, path in _groups(pid):
        for part in reversed(path.split("/")):
            if part.endswith(".service"):
                return part
    return ""
