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
