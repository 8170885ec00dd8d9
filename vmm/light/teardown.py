"""Taking things apart without stopping half-way."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def try_all(steps: Sequence[Callable[[], object]]) -> list[Exception]:
    """Take every step, in order, whatever becomes of the others; returns what they raised."""
    raised: list[Exception] = []
    for step in steps:
        try:
            step()
        except Exception as error:
            raised.append(error)
    return raised


def close_all(steps: Sequence[Callable[[], object]]) -> None:
    """Take every step as try_all() does, then raise what the first failure raised, if any."""
    raised = try_all(steps)
    if raised:
        raise raised[0]
