"""What an instance says of itself, in the types that it should have: it may be somebody else's."""

from __future__ import annotations

from vmm.light.printable import visible

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CODE_MAX = 255
UNEXPLAINED = "the process ended without a word (killed?)"


def number(value: object, low: float, high: float, default: float) -> float:
    """``value`` if it is a number between the two, else ``default``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        return default
    return float(value)


def last_exit(facts: dict[str, Any]) -> dict[str, Any] | None:
    """How it ended: ``code`` (None when that is not known), ``reason``, ``time``; or None."""
    last = facts.get("last_exit")
    if not isinstance(last, dict):
        return None
    code = last.get("code")
    good = isinstance(code, int) and not isinstance(code, bool) and 0 <= code <= CODE_MAX
    time = last.get("time")
    return {
        "code": code if good else None,
        "reason": visible(last.get("reason", "")),
        "time": visible(time, 40) if time else None,
    }
