"""Breakpoints and watchpoints as a script holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm.debug.condition import Expression, compile_condition
from vmm.debug.handle import Handle

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm._native.kvm.condition import Condition as NativeCondition
    from vmm.debug.cpu import Cpu

    Action = Callable[[Cpu], Any]
    Condition = Callable[[Cpu], Any]

HARDWARE = "hardware"
INT3 = "int3"
PORT = "port"
STEP = "step"
PAGE = "page"


class Point(Handle):
    """A breakpoint, or a watchpoint with ``size`` and ``access``. The thread that drives the guest.

    ``kind`` says how it is made: hardware, int3, port (an ``out`` in place of the code), step
    (every instruction is looked at: very slow) or page (a read-only page). ``hits`` counts those
    whose condition held, ``passed`` those whose condition did not. A ``condition`` that is text is
    looked at by native code; it may be changed. One that is not ``enabled`` lets the guest pass;
    remove() ends it.
    """

    def __init__(
        self,
        address: int,
        label: str | None,
        action: Action | None,
        condition: str | Condition | None,
        remove: Callable[[Point], None],
        changed: Callable[[Point], None],
    ) -> None:
        super().__init__()
        self.address = address
        self.label = label
        self.action = action
        self._condition = compile_condition(condition)
        self.kind = ""
        self.size = 0
        self.access = "x"
        self.hits = 0
        self._passed = 0
        self._remove = remove
        self._changed = changed

    def __call__(self, action: Action) -> Point:
        """As a decorator: ``action(cpu)`` runs at each hit."""
        self.action = action
        return self

    def _switched(self) -> None:
        self._changed(self)

    def _gone(self) -> None:
        self._remove(self)

    @property
    def condition(self) -> Condition | None:
        """What a hit has to meet: a function of the Cpu, an Expression of registers, or None."""
        return self._condition

    @condition.setter
    def condition(self, condition: str | Condition | None) -> None:
        compiled = compile_condition(condition)
        self._passed, self._condition = self.passed, compiled
        self._changed(self)

    @property
    def native(self) -> NativeCondition | None:
        """The condition, where native code can look at it."""
        return self._condition.native if isinstance(self._condition, Expression) else None

    @property
    def passed(self) -> int:
        """How often its condition was not met."""
        native = self.native
        return self._passed + (0 if native is None else native.passed)

    def holds(self, cpu: Cpu) -> bool:
        """Whether the condition is met there; counts the hit."""
        if not self.enabled:
            return False
        if self._condition is not None and not self._condition(cpu):
            self._passed += 1
            return False
        self.hits += 1
        return True

    @property
    def is_watch(self) -> bool:
        """A watchpoint."""
        return self.size > 0

    def __repr__(self) -> str:
        what = f"watch {self.size} bytes ({self.access})" if self.is_watch else "breakpoint"
        place = f"{self.address:#x}" + (f" ({self.label})" if self.label else "")
        passed = f", {self.passed} passed" if self.passed else ""
        return f"<{self.kind} {what} at {place}, {self.hits} hits{passed}{self._state}>"
