"""Counter 0 of an 8254 in a script's hands: as much as a kernel needs to wait by polling.

Source: Intel, 8254 Programmable Interval Timer, "Operational Description".
"""

from __future__ import annotations

import time

import vmm

COUNTER, CONTROL = 0x40, 0x43
FREQUENCY = 1_193_182
READ_BACK, LATCH_BITS, OUT_IS_HIGH = 0xE2, 0xF0, 0x80


class Pit:
    """Mode 0 alone: counts down once, then its output is high."""

    def __init__(self, guest: vmm.Guest) -> None:
        self.written = bytearray()
        self.answers = bytearray()
        self.begun = time.monotonic()
        guest.on_port(COUNTER, 4, read=self.read, write=self.write)

    def left(self) -> int:
        count = int.from_bytes(self.written[-2:], "little")
        return count - int((time.monotonic() - self.begun) * FREQUENCY)

    def write(self, cpu: vmm.Cpu, port: int, value: int, size: int) -> None:
        if port == COUNTER:
            self.written.append(value)
            self.begun = time.monotonic()
        elif value == READ_BACK:
            self.answers = bytearray([OUT_IS_HIGH if self.left() <= 0 else 0])
        elif value & LATCH_BITS == 0:
            self.answers = bytearray((self.left() & 0xFFFF).to_bytes(2, "little"))
        else:
            self.written.clear()

    def read(self, cpu: vmm.Cpu, port: int, size: int) -> int:
        return self.answers.pop(0) if self.answers else 0
