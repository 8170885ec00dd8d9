"""How to find a caller's frame in Linux by its ORC tables, read where they lie in guest RAM.

One table has the places in the code, sorted, each a distance from itself; the other has an entry
for each: which register leads to the frame, and what lies in it. Before Linux 6.4 an entry had two
bits for its kind, which has three since. The tables are the guest's: a search takes as many steps
as their size allows, whatever they hold. Modules have tables of their own, which are not used.
Source: arch/x86/include/asm/orc_types.h and arch/x86/kernel/unwind_orc.c of Linux 6.1 and 6.12.
"""

from __future__ import annotations

import struct

from vmm.light.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Lookup(Protocol):
        """The symbols that are needed of a kernel."""

        def get(self, name: str) -> int | None:
            """An address, None for a name that there is not."""


# ORC_REG_* and ORC_TYPE_*, as they are since 6.4.
UNDEFINED, PREV_SP, DX, DI, BP, SP, R10, R13, BP_INDIRECT, SP_INDIRECT = range(10)
END, CALL, REGS, REGS_PARTIAL = range(1, 5)
# Registers that lead to a frame in few places, by their names in KVM_GET_REGS.
RARE = {DX: "rdx", DI: "rdi", R10: "r10", R13: "r13"}
ENTRY = struct.Struct("<hhH")
PLACE_BYTES = 4
ENTRIES_MAX = 1 << 22


class Entry(Record):
    """``kind``, where the frame's end is (``sp_reg``, ``sp_offset``), and where rbp was kept.

    ``signal``: the frame below was an interruption, so the address is that of an instruction that
    did not run yet.
    """

    __slots__ = ("bp_offset", "bp_reg", "kind", "signal", "sp_offset", "sp_reg")
    kind: int
    sp_reg: int
    sp_offset: int
    bp_reg: int
    bp_offset: int
    signal: bool

    def __init__(
        self, kind: int, sp: tuple[int, int], bp: tuple[int, int], signal: bool = False
    ) -> None:
        self._set(
            kind=kind, sp_reg=sp[0], sp_offset=sp[1], bp_reg=bp[0], bp_offset=bp[1], signal=signal
        )


# For code without an entry: a guess that it keeps frame pointers, as the kernel's unwinder does.
FRAME_POINTER = Entry(CALL, (BP, 16), (PREV_SP, -16))


class Orc:
    """The tables of the kernel that ``read(gva, n)`` reads; ValueError where it has none."""

    def __init__(self, read: Callable[[int, int], bytes], symbols: Lookup) -> None:
        self._read = read
        names = ("unwind_ip", "unwind")
        bounds = [symbols.get(f"__{end}_orc_{name}") for name in names for end in ("start", "stop")]
        if None in bounds:
            raise ValueError("a kernel without ORC tables")
        self._places, places_end, self._entries, entries_end = [bound or 0 for bound in bounds]
        self._count = (places_end - self._places) // PLACE_BYTES
        if not 0 < self._count <= ENTRIES_MAX or (
            entries_end - self._entries != self._count * ENTRY.size
        ):
            raise ValueError("ORC tables of another form")
        self._old = symbols.get("orc_header") is None
        self._first, self._last = self._place(0), self._place(self._count - 1)

    def entry(self, address: int) -> Entry | None:
        """The entry for a place in the kernel's code, None for other code; ValueError."""
        if not self._first <= address <= self._last:
            return None
        low, high = 0, self._count - 1
        while low < high:
            middle = (low + high + 1) // 2
            if self._place(middle) <= address:
                low = middle
            else:
                high = middle - 1
        data = self._read(self._entries + low * ENTRY.size, ENTRY.size)
        return (_old if self._old else _new)(*ENTRY.unpack(data))

    def _place(self, index: int) -> int:
        at = self._places + index * PLACE_BYTES
        distance: int = struct.unpack("<i", self._read(at, PLACE_BYTES))[0]
        return at + distance


def _new(sp_offset: int, bp_offset: int, bits: int) -> Entry:
    sp, bp = (bits & 15, sp_offset), (bits >> 4 & 15, bp_offset)
    return Entry(bits >> 8 & 7, sp, bp, bool(bits >> 11 & 1))


def _old(sp_offset: int, bp_offset: int, bits: int) -> Entry:
    """Before 6.4: without a register for the stack, a bit tells an end from code not known."""
    sp, bp = (bits & 15, sp_offset), (bits >> 4 & 15, bp_offset)
    kind = (bits >> 8 & 3) + CALL
    if sp[0] == UNDEFINED:
        kind = END if bits >> 10 & 1 else UNDEFINED
    return Entry(kind, sp, bp, kind in (REGS, REGS_PARTIAL))
