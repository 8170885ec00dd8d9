"""Whose turn it is to drive a guest: one thread's at a time."""

from __future__ import annotations

import threading
import time

LEFT_SECONDS = 0.1


class Turn:
    """Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread = 0

    def mine(self) -> bool:
        """The calling thread has it."""
        return self._thread == threading.get_ident()

    @property
    def taken(self) -> bool:
        """Some thread has it."""
        return self._lock.locked()

    def take(self) -> bool:
        """Have it from now on; False when another thread does."""
        if not self._lock.acquire(blocking=False) and not self._left_behind():
            return False
        self._thread = threading.get_ident()
        return True

    def give(self) -> None:
        """Whoever has it, has it no more."""
        self._thread = 0
        self._lock.release()

    def _left_behind(self) -> bool:
        """It is nobody's: Ctrl-C came in the middle of take() or give()."""
        deadline = time.monotonic() + LEFT_SECONDS
        while self._thread == 0 and self._lock.locked():
            if time.monotonic() > deadline:
                return True
            time.sleep(LEFT_SECONDS / 100)
        return self._thread == 0 and self._lock.acquire(blocking=False)
