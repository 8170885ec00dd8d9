"""MSI-X: the table, the pending bits, and when a vector is connected.

Source: PCI Local Bus Specification 3.0, 6.8.2.
"""

from __future__ import annotations

import struct

from vmm.irq import pending as find_pending
from vmm.irq import unmask_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.irq import MsiVector

CAPABILITY_ID = 0x11
CAPABILITY_SIZE = 12
CONTROL = 2
CONTROL_ENABLE = 1 << 15
CONTROL_MASK_ALL = 1 << 14
ENTRY_SIZE = 16
ENTRY_CONTROL = 12
ENTRY_MASKED = 1
# An entry as a reset leaves it.
ALL_MASKED = bytes(ENTRY_CONTROL) + struct.pack("<I", ENTRY_MASKED)


class Msix:
    """The vectors of one function. Its owner's lock holds all of it; vCPU threads call.

    ``vectors`` are new: masked, and nothing waits in them.
    """

    def __init__(self, vectors: list[MsiVector]) -> None:
        self.vectors = vectors
        self.enabled = False
        self.masked = False
        self._table = bytearray(ALL_MASKED * len(vectors))

    def capability(self, bir: int, table_offset: int, pba_offset: int) -> bytes:
        """The capability's 12 bytes, switched off."""
        return struct.pack(
            "<BBHII", CAPABILITY_ID, 0, len(self.vectors) - 1, table_offset | bir, pba_offset | bir
        )

    def reset(self) -> None:
        """As after a bus reset: off, every entry masked, nothing pending."""
        self.set_control(0)
        self._table[:] = ALL_MASKED * len(self.vectors)
        for vector in self.vectors:
            vector.clear()

    def set_control(self, control: int) -> None:
        """The guest wrote message control: enable and function mask."""
        enabled = bool(control & CONTROL_ENABLE)
        masked = bool(control & CONTROL_MASK_ALL)
        if (enabled, masked) != (self.enabled, self.masked):
            self.enabled = enabled
            self.masked = masked
            self._apply_all()

    def _apply_all(self) -> None:
        """Connect and disconnect what the state now asks for: masked ones first, then the others.

        A driver that lets the function's mask go connects many at once.
        """
        messages = [(vector, self._message(n)) for n, vector in enumerate(self.vectors)]
        for vector, message in messages:
            if message is None:
                vector.mask()
        unmask_all([(vector, *message) for vector, message in messages if message is not None])

    def _message(self, index: int) -> tuple[int, int] | None:
        """The address and data of a vector; None while it is masked."""
        low, high, data, control = struct.unpack_from("<IIII", self._table, index * ENTRY_SIZE)
        masked = not self.enabled or self.masked or control & ENTRY_MASKED
        return None if masked else (high << 32 | low, data)

    def table_read(self, offset: int, size: int) -> int:
        """Read 4 or 8 bytes of the table; other widths are undefined and read 0."""
        if size not in (4, 8) or offset % size or offset + size > len(self._table):
            return 0
        return int.from_bytes(self._table[offset : offset + size], "little")

    def table_write(self, offset: int, value: int, size: int) -> None:
        """Write 4 or 8 bytes of the table."""
        if size not in (4, 8) or offset % size or offset + size > len(self._table):
            return
        index = offset // ENTRY_SIZE
        old = bytes(self._table[index * ENTRY_SIZE : (index + 1) * ENTRY_SIZE])
        self._table[offset : offset + size] = value.to_bytes(size, "little")
        if old != self._table[index * ENTRY_SIZE : (index + 1) * ENTRY_SIZE]:
            message = self._message(index)
            if message is None:
                self.vectors[index].mask()
            else:
                self.vectors[index].unmask(*message)

    def state(self) -> dict[str, object]:
        """The table, and which masked vectors have an interrupt waiting."""
        return {"table": bytes(self._table), "pending": find_pending(self.vectors)}

    def set_state(self, control: int, table: bytes, pending: list[int]) -> None:
        """Message control as in configuration space, and the values of a state(), checked.

        Routes change only where the table does.
        """
        for index in find_pending(self.vectors):
            self.vectors[index].clear()
        if table != self._table:
            self._table[:] = table
            self.enabled = bool(control & CONTROL_ENABLE)
            self.masked = bool(control & CONTROL_MASK_ALL)
            self._apply_all()
        self.set_control(control)
        for index in pending:
            self.vectors[index].set_pending(True)

    def pba_read(self, offset: int, size: int) -> int:
        """Pending bits: one for each vector, read only."""
        value = 0
        for index in range(8 * offset, min(8 * (offset + size), len(self.vectors))):
            if self.vectors[index].pending:
                value |= 1 << index - 8 * offset
        return value
