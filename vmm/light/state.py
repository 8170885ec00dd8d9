"""Device states read back: every key, type and range is checked before anything changes.

A state is a dict of plain values (int, bool, bytes, str, None, lists and dicts of these) with a
``version``. It may come from a file that anyone wrote: what does not fit is a StateError that names
the device, the key and the value.
"""

from __future__ import annotations

from vmm.errors import StateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    # Gives the value back, or raises Unfit: what was found where, and what may stand there.
    Check = Callable[[object], Any]

VERSION = 1
REMEDY = "take the state anew, with a machine and a version like this one"
SHOWN_MAX = 40


class Unfit(Exception):
    """A value that does not fit; ``where`` grows on the way out."""

    def __init__(self, value: object, want: str, where: str = "") -> None:
        super().__init__(want)
        self.value = value
        self.want = want
        self.where = where


def read_state(device: str, state: object, fields: Mapping[str, Check]) -> dict[str, Any]:
    """The checked values of ``device``'s state; StateError when anything in it does not fit."""
    wanted: dict[str, Check] = {"version": int_in(VERSION, VERSION), **fields}
    try:
        found: dict[str, Any] = record(wanted)(state)
    except Unfit as unfit:
        where = f", {unfit.where}" if unfit.where else ""
        raise misfit(device, f"{where} is {show(unfit.value)}: {unfit.want}") from None
    return found


def misfit(device: str, problem: str) -> StateError:
    """The error for a state of ``device`` that cannot be used; ``problem`` follows "the state"."""
    return StateError(f"{device}: the state{problem}", REMEDY)


def show(value: object) -> str:
    """A stranger's value as short text."""
    if type(value) is int:
        text = hex(value)
    elif isinstance(value, (bytes, bytearray)):
        return f"{len(value)} bytes"
    elif isinstance(value, (list, tuple, dict, set)):
        return f"a {type(value).__name__} of {len(value)}"
    elif value is None or isinstance(value, (bool, float, str)):
        text = repr(value)
    else:
        return f"a {type(value).__name__}"
    return text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}..."


def int_in(low: int, high: int) -> Check:
    """An int from ``low`` to ``high``; no bool."""

    def check(value: object) -> int:
        if type(value) is not int or not low <= value <= high:
            raise Unfit(value, f"a number from {low:#x} to {high:#x} is needed")
        return value

    return check


def unsigned(bits: int) -> Check:
    """An int of so many bits."""
    return int_in(0, (1 << bits) - 1)


def flag(value: object) -> bool:
    """A bool."""
    if type(value) is not bool:
        raise Unfit(value, "True or False is needed")
    return value


def data(low: int, high: int | None = None) -> Check:
    """Bytes, from ``low`` to ``high`` of them; exactly ``low`` without ``high``."""
    most = low if high is None else high

    def check(value: object) -> bytes:
        if type(value) is not bytes or not low <= len(value) <= most:
            count = f"{low}" if low == most else f"{low} to {most}"
            raise Unfit(value, f"{count} bytes are needed")
        return value

    return check


def exactly(wanted: str) -> Check:
    """Just this text."""

    def check(value: object) -> str:
        if type(value) is not str or value != wanted:
            raise Unfit(value, f"{wanted!r} is needed")
        return value

    return check


def maybe(check: Check) -> Check:
    """None, or what ``check`` lets through."""
    return lambda value: None if value is None else check(value)


def many(check: Check, low: int, high: int | None = None) -> Check:
    """A list of ``low`` to ``high`` values; exactly ``low`` without ``high``."""
    most = low if high is None else high

    def check_all(value: object) -> list[Any]:
        if type(value) is not list or not low <= len(value) <= most:
            raise Unfit(value, f"a list of {low if low == most else f'{low} to {most}'} is needed")
        return [_inside(check, one, f"[{index}]") for index, one in enumerate(value)]

    return check_all


def record(fields: Mapping[str, Check]) -> Check:
    """A dict with exactly these keys."""

    def check(value: object) -> dict[str, Any]:
        if type(value) is not dict:
            raise Unfit(value, "a dict is needed")
        for key in fields:
            if key not in value:
                raise Unfit(None, "it is missing", key)
        if len(value) != len(fields):
            key = next(key for key in value if key not in fields)
            raise Unfit(value[key], "no such key is known", show(key))
        return {key: _inside(check, value[key], key) for key, check in fields.items()}

    return check


def _inside(check: Check, value: object, where: str) -> Any:
    try:
        return check(value)
    except Unfit as unfit:
        joint = "" if not unfit.where or unfit.where.startswith("[") else "."
        unfit.where = f"{where}{joint}{unfit.where}"
        raise
