"""The name of one address, for a thread that others wait for.

In the file of an ELF kernel, in the running kernel's RAM, or in the System.map beside a bzImage.
"""

from __future__ import annotations

import struct

from vmm.guest import kallsyms, symbolfiles
from vmm.guest.kernelimage import KERNEL_START, kernel_paging

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from vmm.guest.pagetables import Memory, Paging

    class Table(Protocol):
        """Symbols in ascending order, by index."""

        def __len__(self) -> int:
            """Their number."""

        def address(self, index: int) -> int:
            """The address of one."""

        def index_at(self, address: int) -> int:
            """The last one up to an address; -1 for none."""

        def name(self, index: int) -> tuple[str, str]:
            """(letter as in nm(1), name) of one."""

        def names(self) -> list[tuple[str, str]]:
            """(letter as in nm(1), name) of each."""


# Symbols further away than this say nothing about an address.
REACH_BYTES = 1 << 20
# What comes of a file or of RAM that is not what it looks like.
DAMAGED = (OSError, ValueError, IndexError, OverflowError, struct.error)


def symbol_at(
    kernel_path: str, address: int, memory: Memory | None = None, paging: Paging | None = None
) -> str | None:
    """``name+0x12`` for a linear or (before paging) physical address; None when not known.

    With ``memory`` and ``paging`` a bzImage's kernel is asked itself; its System.map holds where
    KASLR did not move it.
    """
    try:
        if is_elf(kernel_path):
            value, name, address = symbolfiles.nearest_in_elf(kernel_path, address)
            return _near(value, name, address)
        if memory is not None and paging is not None:
            if stretches := kernel_paging(memory, paging)[1]:
                if table := kallsyms.find(memory, stretches):
                    return _in_table(table, address)
        path = symbolfiles.map_path(kernel_path)
        return _near(*symbolfiles.nearest_in_map(path, address), address) if path else None
    except DAMAGED:
        return None  # no such file, or a damaged one


def is_elf(path: str) -> bool:
    """Whether a file begins as an ELF file; False when it is gone."""
    try:
        return symbolfiles.is_elf(path)
    except OSError:
        return False


def nearest_in(table: Table, address: int) -> tuple[str, int] | None:
    """(name, its address) of the last symbol up to an address; None when none is near.

    Of several at one address the first, which the kernel prefers as well.
    """
    index = table.index_at(address)
    if index < 0 or address - table.address(index) > REACH_BYTES:
        return None
    while index and table.address(index - 1) == table.address(index):
        index -= 1
    try:
        return table.name(index)[1], table.address(index)
    except DAMAGED:
        return None  # a table that the guest wrote over


def name_and_offset(name: str, offset: int) -> str:
    """``name+0x12``, or the name alone."""
    return f"{name}+{offset:#x}" if offset else name


def _in_table(table: kallsyms.Kallsyms, address: int) -> str | None:
    linear = address if address >= KERNEL_START else address - table.delta
    found = nearest_in(table, linear)
    return None if found is None else name_and_offset(found[0], linear - found[1])


def _near(value: int, name: str, address: int) -> str | None:
    if value < 0 or not name or address - value > REACH_BYTES:
        return None
    return name_and_offset(name, address - value)
