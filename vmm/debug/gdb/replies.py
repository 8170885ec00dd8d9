"""What gdb is told: errors, and why the guest stands still. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.debug import stop

if TYPE_CHECKING:
    from collections.abc import Collection

    from vmm.debug.stop import Stop

OK = b"OK"
NOT_SUPPORTED = b""
BAD_REQUEST = b"E01"
NO_MEMORY = b"E0e"
REFUSED = b"E16"
# gdb's numbers of signals are POSIX's for these.
SIGINT, SIGTRAP, SIGABRT, SIGKILL = 2, 5, 6, 9
SIGNALS = {stop.PAUSED: SIGINT, stop.INTERRUPTED: SIGINT}
WATCH_WORDS = {"w": "watch", "rw": "awatch"}
ERROR_TEXT_MAX = 400


def error_text(error: BaseException) -> bytes:
    """An error in words, for the requests whose errors may have some."""
    words = str(error).replace("\n", " ")[:ERROR_TEXT_MAX]
    return b"E." + words.encode("ascii", "replace")


def console(text: str, most: int) -> list[bytes]:
    """Packets that make gdb print ``text``, of at most ``most`` bytes each."""
    data = text.encode("utf-8", "replace")
    step = most // 2 - 1
    return [b"O" + data[at : at + step].hex().encode() for at in range(0, len(data), step)]


def stopped(found: Stop, features: Collection[str]) -> bytes:
    """A stop reply with its reason, as far as this gdb knows such reasons."""
    words = f"T{SIGNALS.get(found.kind, SIGTRAP):02x}thread:{found.cpu + 1:02x};"
    return (words + _reason(found, features)).encode()


def _reason(found: Stop, features: Collection[str]) -> str:
    kind = getattr(found.where, "kind", "")
    if found.kind == stop.WATCH:
        access = getattr(found.where, "access", "w")
        return f"{WATCH_WORDS[access]}:{getattr(found.where, 'address', 0):x};"
    if found.kind == stop.BREAKPOINT and kind:
        word = "hwbreak" if kind == "hardware" else "swbreak"
        return f"{word}:;" if word in features else ""
    return ""


def ended(kind: str) -> bytes:
    """The guest has ended: as a program that exits, or one that is killed by a signal."""
    return b"W00" if kind in ("shutdown", "reset") else b"X%02x" % SIGABRT


def dead(cpu: int) -> bytes:
    """The guest cannot go on, but can be looked at."""
    return b"T%02xthread:%02x;" % (SIGABRT, cpu + 1)
