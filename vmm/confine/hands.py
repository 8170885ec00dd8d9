"""A thread that does for vCPUs what their filter keeps them from: threads and rings of a device.

It has the control thread's filter, but none of its duties, so that nobody waits in a circle: the
control thread waits for vCPUs, these for the hands, and the hands for a device's threads alone.
"""

from __future__ import annotations

import os
from _thread import allocate_lock, start_new_thread
from errno import EAGAIN

from vmm._native.host.confine import name_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    # What is to be done, the lock that its caller waits for, and what it raised.
    Job = tuple[Callable[[], None], Any, list[BaseException]]


class Hands:
    """Made by the control thread, and started once it is confined. OSError without a descriptor.

    What is asked before start() waits for it.
    """

    def __init__(self) -> None:
        self._jobs: list[Job | None] = []
        self._ended = allocate_lock()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC)
        self._started = False
        self._lacking: OSError | None = None

    def start(self) -> None:
        """Idempotent. OSError without a thread: whoever asks hears of it as well."""
        if self._started:
            return
        self._ended.acquire()
        try:
            start_new_thread(self._work, ())
            self._started = True
        except RuntimeError as error:
            self._lacking = OSError(EAGAIN, f"a thread for the devices' set-up: {error}")
            self._refuse()
            raise self._lacking from error

    def _refuse(self) -> None:
        while self._jobs:
            found = self._jobs.pop(0)
            if found is not None and self._lacking is not None:
                found[2].append(self._lacking)
                found[1].release()

    def carry_out(self, job: Callable[[], None]) -> None:
        """Have it done, and wait; raises what it raised. Any thread but the hands'."""
        done = allocate_lock()
        done.acquire()
        raised: list[BaseException] = []
        self._jobs.append((job, done, raised))
        os.eventfd_write(self._bell, 1)
        if self._lacking is not None:
            self._refuse()
        done.acquire()
        if raised:
            raise raised[0]

    def _work(self) -> None:
        name_thread(b"hands")
        while True:
            os.eventfd_read(self._bell)
            while self._jobs:
                found = self._jobs.pop(0)
                if found is None:
                    self._ended.release()
                    return
                job, done, raised = found
                try:
                    job()
                except BaseException as error:
                    raised.append(error)
                done.release()

    def close(self) -> None:
        """End the thread, with no vCPU running; idempotent. Control thread."""
        if self._bell >= 0:
            if self._started:
                self._jobs.append(None)
                os.eventfd_write(self._bell, 1)
                self._ended.acquire()
            os.close(self._bell)
            self._bell = -1
