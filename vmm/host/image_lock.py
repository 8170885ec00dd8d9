"""Locks on disk images that QEMU and Cloud Hypervisor understand as well.

All are open-file-description locks (fcntl(2)), gone with the process, however that ends.
Cloud Hypervisor locks a range from the file's first byte on, shared for a reader and exclusive for
a writer. QEMU holds shared locks on single bytes that stand for what it does (100 + n) and for
what it does not bear in others (200 + n), and looks for the others' bytes; bit 0 is reading, bit 1
is writing (QEMU's block/file-posix.c).

We lock the whole file for writing, which nobody's lock can stand beside. For reading we hold
QEMU's bytes, so that its readers and Cloud Hypervisor's go on and nobody's writer does.
"""

from __future__ import annotations

import os
import time

from vmm._native.host.posix import ofd_conflict, ofd_lock
from vmm.errors import BusyError
from vmm.host.processes import ENDED_SECONDS, LOOK_SECONDS, is_ending
from vmm.log.hub import get_logger

log = get_logger(__name__)

READS_BYTE = 100
WRITES_BYTE = 101
BEARS_NO_WRITER_BYTE = 201


def lock_image(path: str, fd: int, read_only: bool) -> None:
    """Lock an image until ``fd`` is closed; BusyError names the process that is in the way.

    A lock that no process in sight has, or one that ends, will soon be free: waits for up to
    ENDED_SECONDS then.
    """
    until: float | None = None
    try:
        while not _taken(fd, read_only):
            if until is None or time.monotonic() > until:
                holders = lock_holders(os.fstat(fd), fd)
                if until is not None or not all(is_ending(pid) for pid in holders):
                    raise busy(path, holders)
                until = time.monotonic() + ENDED_SECONDS
            time.sleep(LOOK_SECONDS)
    except OSError as error:
        log.warning(f"{path}: this file system cannot lock it ({error.strerror}); not protected")


def busy(path: str, holders: list[int]) -> BusyError:
    """The error for an image that others hold."""
    who = f"by process {', '.join([str(pid) for pid in holders])}" if holders else "elsewhere"
    return BusyError(
        f"the disk image {path} is in use {who}", "stop what uses it, or give another image"
    )


def would_lock(fd: int, read_only: bool) -> bool:
    """Whether lock_image() would get its lock now; takes none. True where nothing can lock."""
    ranges = [(READS_BYTE, 1), (BEARS_NO_WRITER_BYTE, 1)] if read_only else [(0, 0)]
    try:
        if any(ofd_conflict(fd, not read_only, start, length) for start, length in ranges):
            return False
        return not read_only or _no_writer(fd)
    except OSError:
        return True


def _taken(fd: int, read_only: bool) -> bool:
    try:
        if not read_only:
            ofd_lock(fd, True, 0, 0)
            return True
        ofd_lock(fd, False, READS_BYTE, 1)
        ofd_lock(fd, False, BEARS_NO_WRITER_BYTE, 1)
    except BlockingIOError:
        return False
    return _no_writer(fd)


def _no_writer(fd: int) -> bool:
    """No writer's lock stands beside ours for reading."""
    # The kernel joins neighbouring locks: QEMU's writer shows as one from its first byte on. A
    # lock that starts before that is Cloud Hypervisor's, and a reader's, or ours had failed.
    met = ofd_conflict(fd, True, WRITES_BYTE, 1)
    return met is None or met[1] < READS_BYTE


def lock_holders(image: os.stat_result, but: int = -1) -> list[int]:
    """Processes with a lock on this file, for which fdinfo shows the locks of each open file.

    Ours is among them where it has one by another descriptor than ``but``.
    """
    device = f"{os.major(image.st_dev):02x}:{os.minor(image.st_dev):02x}:{image.st_ino}"
    found = []
    for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
        if _holds_lock(pid, device, str(but) if pid == os.getpid() else ""):
            found.append(pid)
    return found


def _holds_lock(pid: int, device: str, but: str) -> bool:
    try:
        for fd in os.listdir(f"/proc/{pid}/fdinfo"):
            if fd == but:
                continue
            with open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii") as info:
                if any(line.startswith("lock:") and device in line for line in info):
                    return True
    except OSError:
        return False
    return False
