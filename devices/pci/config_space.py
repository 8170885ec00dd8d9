"""The configuration space of one function: bytes, and which bits a guest may change.

Source: PCI Local Bus Specification 3.0, chapter 6.
"""

from __future__ import annotations

import struct

SIZE = 4096
VENDOR_ID = 0x00
COMMAND = 0x04
STATUS = 0x06
CLASS = 0x09
CACHE_LINE = 0x0C
HEADER_TYPE = 0x0E
BAR0 = 0x10
BAR_COUNT = 6
ROM_BAR = 0x30
SUBSYSTEM_VENDOR = 0x2C
CAPABILITIES = 0x34
INTERRUPT_LINE = 0x3C
FIRST_CAPABILITY = 0x40
STATUS_CAPABILITIES = 0x10
COMMAND_IO = 1
COMMAND_MEMORY = 2
# Vendor, device and, behind command and status, the revision.
IDENTITY = struct.Struct("<HH4xB")
SUBSYSTEM = struct.Struct("<HH")


def _first_mask() -> bytes:
    """What a guest may change in any function: command, cache line size, interrupt line."""
    mask = bytearray(SIZE)
    mask[COMMAND : COMMAND + 2] = b"\xff\xff"
    mask[CACHE_LINE] = mask[INTERRUPT_LINE] = 0xFF
    return bytes(mask)


FIRST_MASK = _first_mask()


class ConfigSpace:
    """4096 bytes with a write mask of the same size; unmapped bytes read 0."""

    def __init__(
        self, vendor: int, device: int, class_code: int, revision: int, subsystem: tuple[int, int]
    ) -> None:
        # Behind the last byte that is used: what follows is 0 and stays so.
        self.end = FIRST_CAPABILITY
        self.data = bytearray(SIZE)
        self.mask = bytearray(FIRST_MASK)
        IDENTITY.pack_into(self.data, VENDOR_ID, vendor, device, revision)
        self.data[CLASS : CLASS + 3] = class_code.to_bytes(3, "little")
        SUBSYSTEM.pack_into(self.data, SUBSYSTEM_VENDOR, *subsystem)
        self._next_capability = FIRST_CAPABILITY
        self._last_pointer = CAPABILITIES

    def set(self, offset: int, value: int, size: int) -> None:
        """Change a field regardless of the mask (device side)."""
        self.data[offset : offset + size] = value.to_bytes(size, "little")
        self.end = max(self.end, offset + size)

    def get(self, offset: int, size: int) -> int:
        """A field's value."""
        return int.from_bytes(self.data[offset : offset + size], "little")

    def allow(self, offset: int, mask: int, size: int) -> None:
        """Let the guest change these bits."""
        self.mask[offset : offset + size] = mask.to_bytes(size, "little")
        self.end = max(self.end, offset + size)

    def write(self, offset: int, value: int, size: int) -> None:
        """A guest's write: only allowed bits change."""
        for index, byte in enumerate(value.to_bytes(size, "little"), offset):
            mask = self.mask[index]
            self.data[index] = self.data[index] & ~mask & 0xFF | byte & mask

    def add_capability(self, body: bytes) -> int:
        """Append a capability (``body`` from its id on, next pointer left 0); its offset."""
        offset = self._next_capability
        self.data[offset : offset + len(body)] = body
        self.data[self._last_pointer] = offset
        self.data[STATUS] |= STATUS_CAPABILITIES
        self._last_pointer = offset + 1
        self._next_capability = (offset + len(body) + 3) & ~3
        self.end = max(self.end, self._next_capability)
        return offset
