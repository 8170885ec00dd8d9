"""Breakpoints and watchpoints as a script holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm.debug.condition import compile_condition
from vmm.debug.handle import Handle

if TYPE_CHECKING:
    from collections.abc import Callable

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
    whose condition held. One that is not ``enabled`` lets the guest pass; remove() ends it.
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
        self.condition = compile_condition(condition)
        self.kind = ""
        self.size = 0
        self.access = "x"
        self.hits = 0
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

    def holds(self, cpu: Cpu) -> bool:
        """Whether the condition is met there; counts the hit."""
        if not self.enabled or (self.condition is not None and not self.condition(cpu)):
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
        return f"<{self.kind} {what} at {place}, {self.hits} hits{self._state}>"
