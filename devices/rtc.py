"""The CMOS real-time clock: index port 0x70, data port 0x71.

Source: Motorola MC146818A data sheet; the memory size registers and the reset write are those of
Cloud Hypervisor's platform.
"""

from __future__ import annotations

import time

from vmm._native.kvm import bus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

INDEX = 0
DATA = 1
REGISTER_MASK = 0x7F
SIZE = 128
STATUS_A = 0x0A
STATUS_B = 0x0B
STATUS_D = 0x0D
STATUS_D_VALID = 0x80
# Hours run from 0 to 23 in BCD, whatever is written. Cloud Hypervisor shows 0 here, a 12-hour
# clock, which Linux's driver refuses with an error.
STATUS_B_24_HOURS = 0x02
STATUS_B_FORMAT = 0x06
STATUS_A_DIVIDER = 0x20
UPDATE_IN_PROGRESS = 0x80
# The clock is being updated during the last 244 us of each second.
UPDATE_START_NS = 1_000_000_000 - 244_000
LOW_MEMORY = 0x34
HIGH_MEMORY = 0x5B
UNIT = 64 * 1024
LOW_BASE = 16 * 1024 * 1024
SHUTDOWN_STATUS_RAW = 0x8F
CENTURY = 0x32


def bcd(value: int) -> int:
    """Two decimal digits as a byte."""
    return value // 10 << 4 | value % 10


class Rtc:
    """The clock (UTC, BCD, 24 hours) and 128 bytes of CMOS; ``now_ns`` is the time source.

    Without a lock: each access looks at the index once and changes one byte. A guest that shares
    the two ports between vCPUs has a lock of its own.
    Writing 0 to register 0x0f resets the machine only through the raw index 0x8f: firmware
    clears register 0x0f through the plain index in every boot.
    """

    def __init__(
        self, low_ram: int, high_ram: int, now_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._now_ns = now_ns
        self._index = 0
        self._ram = bytearray(SIZE)
        low = min(max(0, low_ram - LOW_BASE) // UNIT, 0xFFFF)
        self._ram[LOW_MEMORY : LOW_MEMORY + 2] = low.to_bytes(2, "little")
        high = min(high_ram // UNIT, 0xFFFFFF)
        self._ram[HIGH_MEMORY : HIGH_MEMORY + 3] = high.to_bytes(3, "little")

    def read(self, offset: int, size: int) -> int:
        """The index as written, or the selected register."""
        if size != 1:
            return (1 << 8 * size) - 1
        index = self._index
        if offset == INDEX:
            return index
        register = index & REGISTER_MASK
        if register == STATUS_A:
            busy = self._now_ns() % 1_000_000_000 >= UPDATE_START_NS
            return STATUS_A_DIVIDER | (UPDATE_IN_PROGRESS if busy else 0)
        if register == STATUS_B:
            return self._ram[STATUS_B] & ~STATUS_B_FORMAT | STATUS_B_24_HOURS
        if register == STATUS_D:
            return STATUS_D_VALID
        clock = self._clock(register)
        return self._ram[register] if clock is None else clock

    def _clock(self, register: int) -> int | None:
        if register not in (0, 2, 4, 6, 7, 8, 9, CENTURY):
            return None
        now = time.gmtime(self._now_ns() // 1_000_000_000)
        return bcd(
            {
                0: now.tm_sec,
                2: now.tm_min,
                4: now.tm_hour,
                6: (now.tm_wday + 1) % 7 + 1,
                7: now.tm_mday,
                8: now.tm_mon,
                9: now.tm_year % 100,
                CENTURY: now.tm_year // 100,
            }[register]
        )

    def write(self, offset: int, value: int, size: int) -> int:
        """Select a register, or write it; the clock itself cannot be set."""
        if size != 1:
            return bus.CONTINUE
        index = self._index
        if offset == INDEX:
            self._index = value
        elif index == SHUTDOWN_STATUS_RAW and value == 0:
            return bus.RESET
        else:
            self._ram[index & REGISTER_MASK] = value
        return bus.CONTINUE

    def state(self) -> dict[str, object]:
        """The index and the RAM; the time is the host's."""
        return {"version": 1, "index": self._index, "ram": bytes(self._ram)}

    def set_state(self, state: object) -> None:
        """A state() again; StateError when it does not fit."""
        from vmm.light.state import data, read_state, unsigned

        found = read_state("CMOS", state, {"index": unsigned(8), "ram": data(SIZE)})
        self._index = found["index"]
        self._ram[:] = found["ram"]
