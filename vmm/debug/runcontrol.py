"""Runs a guest until there is something to say of it: hits, steps, time-outs, the guest's end."""

from __future__ import annotations

import time
from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from vmm.debug import driver, stop
from vmm.debug.call import Call
from vmm.debug.stop import STOP, Stop
from vmm.debug.turn import Turn
from vmm.run.outcome import outcome_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vmm.debug.breakpoints import Breakpoints
    from vmm.debug.cpu import Cpu
    from vmm.debug.kernelsymbols import KernelSymbols
    from vmm.debug.patches import Patches
    from vmm.debug.points import Point
    from vmm.machine import Machine
    from vmm.run.outcome import Outcome


LOOK_SECONDS = 0.02
# What is longer than this is the same, and a clock's nanoseconds fit into 64 bits.
FOREVER = 1e9


class RunControl:
    """One guest's running and standing still.

    One thread at a time drives: the one inside driving(). ask() and at_rest() may be called by any.
    """

    def __init__(
        self,
        machine: Machine,
        cpus: Sequence[Cpu],
        points: Breakpoints,
        patches: Patches,
        symbols: KernelSymbols,
        run_driver: driver.Driver | None = None,
        outcome_of: Callable[[Machine], Outcome] = outcome_of,
    ) -> None:
        """``outcome_of`` tells why a machine has ended, and may end all of it."""
        self.driver = run_driver or driver.make_driver(machine)
        self.outcome: Outcome | None = None
        # What other vCPUs stopped for in the same moment as the one of the newest Stop.
        self.also: list[Stop] = []
        self._outcome_of = outcome_of
        self._machine = machine
        self._cpus = cpus
        self._points = points
        self._patches = patches
        self._symbols = symbols
        self._asked: list[Stop] = []
        self._calls: deque[Call] = deque()
        self._errors: list[BaseException] = []
        self._turn = Turn()
        self._running = False
        # The vCPU whose exit a script answers just now, -1: none.
        self._standing = -1
        # Looked at each time the vCPUs were interrupted: True ends the run.
        self._until: Callable[[], bool] | None = None

    # --- who drives ---

    @contextmanager
    def driving(self, ended: bool = False) -> Iterator[None]:
        """For the time of a run; RuntimeError when another thread drives, or the guest ended.

        ``ended``: it may have.
        """
        if self._turn.mine():
            raise RuntimeError("an action or a hook of this guest cannot let it run")
        try:
            if not self._turn.take():
                raise RuntimeError("the guest runs on another thread: pause() it first")
            if self.outcome is not None and not ended:
                raise RuntimeError(
                    f"the guest has ended ({self.outcome.kind}: {self.outcome.reason}); restore() "
                    "a snapshot, or make a new one"
                )
            yield
        finally:
            if self._turn.mine():
                self._turn.give()

    @contextmanager
    def standing(self) -> Iterator[None]:
        """For something that only needs the guest to stand still; inside an action as well."""
        if self._turn.mine():
            self.still()
            yield
            return
        with self.driving(ended=True):
            yield

    def at_rest(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call it with the guest standing still: a running one is stopped for it, and goes on.

        Any thread. By the thread that drives it is called at once.
        """
        if self._turn.mine():
            return function(*arguments)
        call = Call(function, arguments)
        self._calls.append(call)
        try:
            while not call.done.wait(0):
                if self._turn.take():
                    try:
                        self._make_calls()
                    finally:
                        self._turn.give()
                else:
                    self.driver.wake()
                    call.done.wait(LOOK_SECONDS)
        finally:
            with suppress(ValueError):
                self._calls.remove(call)
        return call.value()

    def _make_calls(self) -> None:
        with suppress(IndexError):
            while True:
                self._calls.popleft().run()

    @property
    def busy(self) -> bool:
        """True while some thread drives."""
        return self._turn.taken

    def still(self, index: int = -1) -> None:
        """RuntimeError when the guest runs, or another thread drives it.

        In a hook its own vCPU, number ``index``, stands still and the others do not.
        """
        if self._standing >= 0 and self._turn.mine():
            if index in (-1, self._standing):
                return
            raise RuntimeError(f"vCPU {index} runs: in a hook only its own one stands still")
        if self._running or (self.busy and not self._turn.mine()):
            raise RuntimeError("the guest is running: pause() it first")

    def ask(self, kind: str, reason: str = "", where: object = None, cpu: int = 0) -> None:
        """Let the run end with such a Stop. Any thread."""
        self._asked.append(Stop(kind, cpu, reason=reason, where=where))
        self.driver.wake()

    def serve(self, index: int, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a script's function for an exit of vCPU ``index``, on the thread that drives.

        Called by that vCPU's thread; what the function raises comes out here.
        """
        return self.driver.call(self._serve, index, function, arguments)

    def _serve(self, index: int, function: Callable[..., Any], arguments: Any) -> Any:
        before, self._standing = self._standing, index
        try:
            return function(*arguments)
        finally:
            self._standing = before
            # Its registers are those of the middle of an instruction: nobody may keep them.
            self._cpus[index].flush()

    def fail(self, error: BaseException) -> None:
        """Let the run end with this exception, the guest intact. Any thread."""
        self._errors.append(error)
        self.driver.wake()

    # --- running ---

    def run(
        self,
        deadline: float | None,
        until: Callable[[], bool] | None = None,
        only: Cpu | None = None,
        looks: bool = True,
    ) -> Stop:
        """Let all vCPUs run, or ``only`` one; ``until`` is asked after each interruption.

        And from time to time with ``looks``; else whoever knows of a change calls driver.wake().
        """
        return self._guarded(until, 0, lambda: self._run(deadline, only, looks))

    def step(
        self,
        cpu: Cpu,
        count: int,
        until: Callable[[], bool] | None = None,
        among: bool = False,
    ) -> Stop:
        """``count`` instructions of one vCPU; the others stand still, or run with ``among``."""
        return self._guarded(until, cpu.index, lambda: self._steps(cpu, count, among))

    def _guarded(
        self, until: Callable[[], bool] | None, index: int, work: Callable[[], Stop]
    ) -> Stop:
        """What ``work`` ends with; whatever comes in between leaves the guest intact."""
        self._until = until
        self.also = []
        try:
            return self._stopped(work())
        except KeyboardInterrupt:
            self._settle()
            return self._stopped(Stop(stop.INTERRUPTED, index, reason="Ctrl-C"))
        except BaseException:
            self._settle()
            raise
        finally:
            self._until = None
            self._patches.stand_still()

    def _run(self, deadline: float | None, only: Cpu | None, looks: bool) -> Stop:
        self._leave_points(deadline)
        while True:
            found = self._pending() or self._answer(
                self._go(self._slice(deadline) if looks else deadline, only)
            )
            if found is not None and (found.kind != stop.TIMEOUT or late(deadline)):
                return found

    def _steps(self, cpu: Cpu, count: int, among: bool) -> Stop:
        for _ in range(count):
            found = self._pending() or self._step(cpu, None, among)
            if found is not None:
                return found
        return Stop(stop.STEP, cpu.index)

    def _go(
        self, deadline: float | None, only: Cpu | None = None, steps: bool = False
    ) -> driver.Event:
        """``steps``: what the vCPUs stop for has been set already."""
        for cpu in self._cpus:
            cpu.flush()
        if not steps:
            self._points.arm()
        self._running = True
        try:
            return self.driver.go(deadline, None if only is None else only.vcpu)
        finally:
            self._running = False

    def _slice(self, deadline: float | None) -> float | None:
        """Who waits for words looks from time to time."""
        if self._until is None:
            return deadline
        soon = time.monotonic() + LOOK_SECONDS
        return soon if deadline is None else min(soon, deadline)

    def _leave_points(self, deadline: float | None) -> None:
        if not self._points.any:
            return
        for cpu in self._cpus:
            if self._points.standing_on(cpu):
                found = self._step(cpu, deadline)
                if found is not None:
                    self._asked.append(found)

    def _step(self, cpu: Cpu, deadline: float | None, among: bool = False) -> Stop | None:
        """One instruction; None when it was just that."""
        # Without its patch under it nobody else may run: he would miss it.
        alone = not among or self._points.standing_on(cpu)
        if not alone:
            self._points.arm()
        # KVM steps from where the vCPU is when it is told to: another rip has to be there before.
        if cpu.regs.changed or cpu.sregs.changed:
            cpu.flush()
        self._points.arm_step(cpu)
        while True:
            event = self._go(deadline, cpu if alone else None, steps=True)
            if event.kind == driver.STOPPED and self._only_stepped(cpu, event):
                return None
            found = self._pending() if event.kind == driver.WOKEN else self._answer(event)
            if found is not None:
                return found
            if event.kind != driver.WOKEN:
                return None

    def _only_stepped(self, cpu: Cpu, event: driver.Event) -> bool:
        return event.vcpus == [cpu.vcpu] and self._points.stepped(cpu)

    def _settle(self) -> None:
        """The guest stands still, intact, wherever an exception came; Ctrl-C may come again."""
        while True:
            try:
                self.driver.still()
                for cpu in self._cpus:
                    cpu.flush()
                    self._points.settle(cpu)
                return
            except KeyboardInterrupt:
                continue

    def _pending(self) -> Stop | None:
        """What was asked for meanwhile."""
        self._make_calls()
        if self._errors:
            errors, self._errors = self._errors, []
            self._asked.clear()
            raise errors[0]
        if self._until is not None and self._until():
            return Stop(stop.PAUSED)
        return self._asked.pop(0) if self._asked else None

    def _answer(self, event: driver.Event) -> Stop | None:
        """What an interruption means; None: go on."""
        if event.kind == driver.ENDED:
            return self._ended(event)
        if event.kind == driver.TIMEOUT:
            return Stop(stop.TIMEOUT)
        found = self._hits([self._cpus[vcpu.index] for vcpu in event.vcpus])
        self.also = found[1:]
        asked = self._asked or self._errors
        if not found and event.kind == driver.STOPPED and not asked:
            self._leave_points(None)
        return found[0] if found else None

    def _hits(self, cpus: Sequence[Cpu]) -> list[Stop]:
        """Runs the actions of what these have hit; all are answered before the first action."""
        met = [(cpu, self._points.hits(cpu)) for cpu in cpus]
        found: list[Stop] = []
        try:
            while met:
                told = self._hit(*met.pop(0))
                found += [told] if told is not None else []
        finally:
            # One of them raises: the others' turn is in the next run.
            self._points.put_off([cpu for cpu, points in met if points])
        return found

    def _hit(self, cpu: Cpu, points: Sequence[Point] | None) -> Stop | None:
        """Runs the actions of what this vCPU has hit."""
        found: Stop | None = None
        for point in points or ():
            if point.holds(cpu) and self._act(point, cpu) is STOP:
                kind = stop.WATCH if point.is_watch else stop.BREAKPOINT
                found = found or Stop(kind, cpu.index, reason=repr(point), where=point)
        return found

    def _act(self, point: Point, cpu: Cpu) -> Any:
        return STOP if point.action is None else point.action(cpu)

    def _ended(self, event: driver.Event) -> Stop:
        self.outcome = self._outcome_of(self._machine)
        first = event.vcpus[0].index
        return Stop(stop.ENDED, first, reason=self.outcome.reason, outcome=self.outcome)

    def _stopped(self, found: Stop) -> Stop:
        """With the place, as far as it is not known yet."""
        cpu = self._cpus[found.cpu]
        try:
            address = cpu.address
        except (OSError, RuntimeError):
            return found
        return found.replace(address=address, symbol=self._symbols.at(address))

    def restarted(self) -> None:
        """The vCPUs got another state: nothing that was known of them counts."""
        self.outcome = None
        self._asked.clear()
        self._errors.clear()
        self._points.forget()
        self._symbols.forget()


def late(deadline: float | None) -> bool:
    """It has passed."""
    return deadline is not None and time.monotonic() >= deadline


def deadline_of(seconds: float | None) -> float | None:
    """A time-out as a point of the monotonic clock."""
    if seconds is None:
        return None
    if not isinstance(seconds, int | float) or not seconds >= 0:
        raise ValueError(f"seconds={seconds!r}: a time to come, or None")
    return time.monotonic() + min(seconds, FOREVER)
