"""Lets a guest's vCPUs run, and makes them stand still again: one thread drives them.

With one vCPU the guest runs on the driving thread itself: nothing is handed over. With several each
has its native thread, and the driving thread sleeps in poll().
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from vmm._native.kvm import bus
from vmm.debug.call import Call
from vmm.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm._native.console.keptport import KeptPort
    from vmm.machine import Machine
    from vmm.vcpu import Vcpu

WOKEN = "woken"
TIMEOUT = "timeout"
STOPPED = "stopped"
ENDED = "ended"
NS = 1_000_000_000
PAUSE_TRIES = 1000
PAUSE_MS = 10


class Event:
    """Why go() came back: woken, timeout, stopped (a vCPU wants an answer) or ended, and which."""

    def __init__(self, kind: str, vcpus: Sequence[Vcpu] = ()) -> None:
        self.kind = kind
        self.vcpus = vcpus


class Alone:
    """The driver of a guest with one vCPU."""

    def __init__(self, machine: Machine) -> None:
        self._vcpu = machine.vcpus[0]

    def go(self, deadline: float | None, only: Vcpu | None = None) -> Event:
        """Let it run until something happens, or ``deadline`` (monotonic s) has come."""
        timeout = 0
        if deadline is not None:
            timeout = int((deadline - time.monotonic()) * NS)
            if timeout <= 0:
                return Event(TIMEOUT)
        loop = self._vcpu.loop
        outcome = loop.run_here(timeout)
        if outcome == bus.KICKED:
            late = deadline is not None and time.monotonic() >= deadline
            return Event(TIMEOUT if late else WOKEN)
        if outcome == bus.STOP:
            loop.settle()
            return Event(STOPPED, [self._vcpu])
        return Event(ENDED, [self._vcpu])

    def still(self) -> None:
        """It stands still with whole registers, whatever interrupted go()."""
        if self._vcpu.loop.stood:
            self._vcpu.loop.settle()

    def wake(self) -> None:
        """Make go() come back soon; any thread."""
        self._vcpu.loop.kick()

    def listen(self, port: KeptPort) -> None:
        """Come back when output comes on a console whose port is armed."""
        port.attend(self._vcpu.loop)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a hook: a vCPU's exits are on the driving thread already."""
        return function(*arguments)

    def later(self, function: Callable[[], Any]) -> None:
        """Nothing comes later: the only vCPU stands still while its exit is served."""
        function()

    def reset(self) -> None:
        """The guest gets another state, and shall run again if it has ended."""
        self._vcpu.loop.renew()

    def close(self) -> None:
        """Nothing to give back."""


class Several:
    """The driver of a guest with more vCPUs: native threads, held between two go()."""

    def __init__(self, machine: Machine) -> None:
        self._vcpus = machine.vcpus
        self._outcome_fd = machine.outcome_fd
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        for fd in (self._outcome_fd, self._wake_fd):
            self._poll.register(fd, select.POLLIN)
        self._started = False
        self._woken = False
        self._turn = 0
        self._calls: deque[Call] = deque()
        self._thread = 0

    def go(self, deadline: float | None, only: Vcpu | None = None) -> Event:
        """Let all run (or ``only`` one) until something happens; all stand still afterwards."""
        self._thread = threading.get_ident()
        try:
            self._let_go(only)
            late = self._wait(deadline)
        finally:
            self._hold()
        return self._event(late, self._vcpus if only is None else [only])

    def _let_go(self, only: Vcpu | None) -> None:
        if not self._started:
            self._started = True
            # Held before the first instruction: one of them may have to go alone.
            for vcpu in self._vcpus:
                vcpu.start(held=True)
            self._hold()
        # Another one first each time: who goes first may stop all again before others have begun.
        self._turn = (self._turn + 1) % len(self._vcpus)
        everyone = [*self._vcpus[self._turn :], *self._vcpus[: self._turn]]
        for vcpu in everyone if only is None else [only]:
            vcpu.let_go()

    def _wait(self, deadline: float | None) -> bool:
        """True when the deadline came first."""
        while True:
            timeout = None
            if deadline is not None:
                timeout = max(0.0, deadline - time.monotonic()) * 1000
            ready = [fd for fd, _ in self._poll.poll(timeout)]
            for fd in ready:
                _drain(fd)
            self._serve()
            if self._woken or any(fd != self._wake_fd for fd in ready):
                self._woken = False
                return False
            # Asked each time: hooks may come so fast that there is always one.
            if deadline is not None and time.monotonic() >= deadline:
                return True

    def _serve(self) -> None:
        for _ in range(len(self._calls)):
            self._calls.popleft().run()

    def _hold(self) -> None:
        for vcpu in self._vcpus:
            loop = vcpu.loop
            for _ in range(PAUSE_TRIES):
                # It may be waiting for a hook that nobody but this thread runs.
                self._serve()
                if loop.outcome != bus.CONTINUE or vcpu.hold(PAUSE_MS):
                    break
            else:
                raise HostError(f"vCPU {vcpu.index} does not leave the guest", "see the kernel log")

    def _event(self, late: bool, ran: Sequence[Vcpu]) -> Event:
        ended = [vcpu for vcpu in self._vcpus if vcpu.loop.outcome != bus.CONTINUE]
        if ended:
            return Event(ENDED, ended)
        # Another one's stop was told already: it stands there since.
        stands = [vcpu for vcpu in ran if vcpu.loop.stands]
        if stands:
            return Event(STOPPED, stands)
        return Event(TIMEOUT if late else WOKEN)

    def still(self) -> None:
        """All stand still, whatever interrupted go()."""
        if self._started:
            self._hold()

    def wake(self) -> None:
        """Make go() come back soon; any thread."""
        self._woken = True
        self._ring()

    def _ring(self) -> None:
        os.eventfd_write(self._wake_fd, 1)

    def listen(self, port: KeptPort) -> None:
        """Come back when output comes on a console whose port is armed."""
        self._poll.register(port.ready_fd, select.POLLIN)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a hook on the driving thread, whichever calls; what it raises comes out here."""
        if threading.get_ident() == self._thread:
            return function(*arguments)
        call = Call(function, arguments)
        self._calls.append(call)
        self._ring()
        call.done.wait()
        return call.value()

    def later(self, function: Callable[[], Any]) -> None:
        """Run ``function`` on the driving thread soon, behind what waits there already."""
        self._calls.append(Call(function, ()))
        self._ring()

    def reset(self) -> None:
        """The guest gets another state; threads are made anew where one has ended."""
        loops = [vcpu.loop for vcpu in self._vcpus]
        for loop in loops:
            loop.late = bus.CONTINUE
        if not self._started or all(loop.outcome == bus.CONTINUE for loop in loops):
            return
        for loop in loops:
            loop.kick()
        for loop in loops:
            loop.join()
        self._started = False
        for fd, _ in self._poll.poll(0):
            _drain(fd)

    def close(self) -> None:
        """Give the eventfd back; the vCPUs have ended."""
        os.close(self._wake_fd)


def _drain(fd: int) -> None:
    # Somebody else may have looked meanwhile.
    with suppress(BlockingIOError):
        os.eventfd_read(fd)


Driver = Alone | Several


def make_driver(machine: Machine) -> Driver:
    """The driver for so many vCPUs."""
    return Alone(machine) if len(machine.vcpus) == 1 else Several(machine)
