"""A vCPU's view of memory: guest virtual addresses (gva), through its own page tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.guest import pagetables
from vmm.guest.pagetables import Paging

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmm.debug.ram import Ram
    from vmm.debug.registers import Sregs
    from vmm.guest.pagetables import Mapping

STRING_MAX = 4096
STRING_PIECE = 128


class CpuMemory:
    """Memory by gva; a string in place of an address is a symbol (``name`` or ``name+0x12``).

    While the guest stands still. PageFault, a ValueError, names the gva that is not mapped.
    """

    def __init__(self, ram: Ram, sregs: Sregs, resolve: Callable[[str | int], int]) -> None:
        self._ram = ram
        self._sregs = sregs
        self._resolve = resolve

    @property
    def paging(self) -> Paging:
        """The form and the root of the page tables, by cr0, cr3, cr4 and efer."""
        return Paging.of(self._sregs.as_dict())

    def translate(self, gva: str | int) -> int:
        """The gpa behind an address."""
        return pagetables.translate(self._ram, self.paging, self._resolve(gva))

    def read(self, gva: str | int, length: int) -> bytes:
        """A copy of ``length`` bytes."""
        if length < 0:
            raise ValueError(f"{length} bytes")
        if length == 0:
            return b""
        return pagetables.read(self._ram, self.paging, self._resolve(gva), length)

    def write(self, gva: str | int, data: bytes | bytearray | memoryview) -> None:
        """Copy ``data`` there, whatever the page's rights; nothing when a page is not mapped."""
        view = memoryview(data).cast("B")
        where = self._resolve(gva)
        # All of them first, so that a page fault comes before the first byte is written.
        for gpa, size in list(pagetables.spans(self._ram, self.paging, where, len(view))):
            self._ram.write(gpa, view[:size])
            view = view[size:]

    def read_string(self, gva: str | int, limit: int = STRING_MAX) -> str:
        """The text up to a NUL, of at most ``limit`` bytes; what is no UTF-8 shows as U+FFFD."""
        where = self._resolve(gva)
        found = b""
        while len(found) < limit:
            # Not beyond the page: the next one need not be there.
            length = min(STRING_PIECE - where % STRING_PIECE, limit - len(found))
            text, end, _ = self.read(where, length).partition(b"\0")
            found += text
            if end:
                break
            where += length
        return found.decode("utf-8", "replace")

    def _number(self, gva: str | int, size: int) -> int:
        return int.from_bytes(self.read(gva, size), "little")

    def read_u8(self, gva: str | int) -> int:
        """An unsigned number of 8 bits."""
        return self._number(gva, 1)

    def read_u16(self, gva: str | int) -> int:
        """An unsigned number of 16 bits, little endian."""
        return self._number(gva, 2)

    def read_u32(self, gva: str | int) -> int:
        """An unsigned number of 32 bits, little endian."""
        return self._number(gva, 4)

    def read_u64(self, gva: str | int) -> int:
        """An unsigned number of 64 bits, little endian."""
        return self._number(gva, 8)

    def mappings(self, first: int = 0, last: int = (1 << 64) - 1) -> Iterator[Mapping]:
        """What is mapped, in ascending order: gva, gpa, size and flags ("wux") of each stretch."""
        return pagetables.mappings(self._ram, self.paging, first, last)

    def __repr__(self) -> str:
        return f"<memory through the page tables at {self.paging.root:#x}>"
