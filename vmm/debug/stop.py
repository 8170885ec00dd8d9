"""Why a guest stands still: what run(), step() and expect() return."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm.light.record import Record

if TYPE_CHECKING:
    from vmm.run.outcome import Outcome

BREAKPOINT: Final = "breakpoint"
WATCH: Final = "watch"
STEP: Final = "step"
HOOK: Final = "hook"
ENDED: Final = "ended"
TIMEOUT: Final = "timeout"
INTERRUPTED: Final = "interrupted"
PAUSED: Final = "paused"


class StopWord:
    """The type of STOP."""

    def __repr__(self) -> str:
        return "vmm.STOP"


# What an action or a hook returns so that run() returns as well.
STOP: Final = StopWord()


class Stop(Record):
    """Why and where run() came back.

    ``kind`` is breakpoint, watch, step, hook, ended, timeout, interrupted (Ctrl-C) or paused (by
    another thread). ``cpu`` is the number of the vCPU that stopped first, ``address`` its rip (a
    linear address), ``symbol`` that as ``name+0x12`` where symbols are known. ``outcome`` says how
    a guest ended. ``where`` is the handle of the breakpoint, watchpoint or hook.
    """

    __slots__ = ("address", "cpu", "kind", "outcome", "reason", "symbol", "where")
    kind: str
    cpu: int
    address: int
    symbol: str | None
    reason: str
    outcome: Outcome | None
    where: object

    def __init__(
        self,
        kind: str,
        cpu: int = 0,
        address: int = 0,
        symbol: str | None = None,
        reason: str = "",
        outcome: Outcome | None = None,
        where: object = None,
    ) -> None:
        self._set(
            kind=kind, cpu=cpu, address=address, symbol=symbol, reason=reason, outcome=outcome,
            where=where,
        )  # fmt: skip

    def __str__(self) -> str:
        place = f"cpu {self.cpu} at {self.address:#x}"
        if self.symbol:
            place += f" ({self.symbol})"
        return f"{self.kind}: {place}" + (f": {self.reason}" if self.reason else "")

    def __repr__(self) -> str:
        return f"<Stop {self}>"

    def _repr_html_(self) -> str:
        from html import escape

        return f"<code>{escape(str(self))}</code>"
