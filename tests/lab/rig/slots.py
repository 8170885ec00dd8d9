"""How many labs run at once on this machine, whoever starts them: as many as there are processors.

Each emulates one processor that is busy all the time. A slot is an advisory lock on a file, which
the lab's QEMU holds as well: it is free again when both have ended, however they end.
"""

from __future__ import annotations

import fcntl
import os
import time

from tests.lab.guests.cache import cache_directory
from tests.lab.rig.progress import say

RETRY_SECONDS = 0.5


def count() -> int:
    return max(1, len(os.sched_getaffinity(0)))


class Slot:
    """One of them, taken from now on until close(); waits until one is free."""

    def __init__(self) -> None:
        self.fd = -1
        told = False
        while not self.take():
            if not told:
                say(f"    {count()} labs are running: waiting until one ends")
                told = True
            time.sleep(RETRY_SECONDS)

    def take(self) -> bool:
        """Take one that is free; False when there is none."""
        for number in range(count()):
            path = cache_directory() / f".lab-slot-{number}.lock"
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                continue
            self.fd = fd
            return True
        return False

    def close(self) -> None:
        """Let go of our end; idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
