"""Ports that firmware and kernels tell their progress to: 0x402 (text) and 0x80 (a code)."""

from __future__ import annotations

from _thread import allocate_lock

from vmm.log.hub import get_logger

log = get_logger(__name__)

# What a read gives, so that firmware knows somebody listens.
PRESENT = 0xE9
LINE_MAX = 256


class FirmwareDebugPort:
    """Port 0x402: lines of text, shown in the debug log. ``_lock`` holds the line."""

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._line = bytearray()

    def read(self, offset: int, size: int) -> int:
        """0xe9 for a byte."""
        return PRESENT if size == 1 else (1 << 8 * size) - 1

    def write(self, offset: int, value: int, size: int) -> None:
        """One character; a line is logged when it ends or gets too long."""
        if size != 1:
            return
        with self._lock:
            if value != ord("\n"):
                self._line.append(value)
                if len(self._line) < LINE_MAX:
                    return
            line = bytes(self._line)
            self._line.clear()
        if log.debugging:
            log.debug(f"firmware: {line.decode('latin-1').rstrip()}")

    def state(self) -> dict[str, object]:
        """The line so far."""
        with self._lock:
            return {"version": 1, "line": bytes(self._line)}

    def set_state(self, state: object) -> None:
        """A state() again; StateError when it does not fit."""
        from vmm.light.state import data, read_state

        found = read_state("firmware debug port", state, {"line": data(0, LINE_MAX - 1)})
        with self._lock:
            self._line[:] = found["line"]
