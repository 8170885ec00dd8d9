"""The processor's page tables, read from guest RAM: where a guest virtual address (gva) leads.

All forms that an x86 processor has: no paging, 32-bit, PAE, 4 and 5 levels, with large pages. The
tables are the guest's: a walk has as many steps as the form has levels, a table outside RAM ends
it, and a list of all mappings stops after so many tables. Segments are not applied.
Source: Intel SDM volume 3, chapter 5 (Paging). Each function may be called from any thread; what
the guest changes meanwhile may be seen half.
"""

from __future__ import annotations

import struct

from vmm.errors import GuestError
from vmm.light.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Mapping as AnyMapping
    from typing import Any, Protocol

    class Memory(Protocol):
        """What this room needs of guest RAM; GuestMemory has it."""

        @property
        def regions(self) -> list[tuple[int, int]]:
            """(gpa, size) of each region."""

        def read(self, gpa: int, length: int) -> bytes:
            """A copy; ValueError unless inside one region."""


PAGE_SIZE = 4096
CR0_PG = 1 << 31
CR4_PSE = 1 << 4
CR4_PAE = 1 << 5
CR4_LA57 = 1 << 12
EFER_LMA = 1 << 10
EFER_NXE = 1 << 11
PRESENT = 1
WRITABLE = 1 << 1
USER = 1 << 2
LARGE = 1 << 7
NO_EXECUTE = 1 << 63
ADDRESS = (1 << 52) - PAGE_SIZE
LEGACY_LARGE_ADDRESS = (1 << 32) - (1 << 22)
# A kernel of everyday has some hundreds; tables that name each other would have no end.
TABLES_MAX = 1 << 16
KEPT_TABLES_MAX = 64
# For less than so many bytes single entries are read.
WHOLE_FROM_BYTES = 4 * PAGE_SIZE


class PageFault(ValueError):
    """An address that leads nowhere: ``gva``, and ``level`` of the table whose entry ends the walk.

    Levels count from 1 (the entry of a 4 KiB page) up; level 0 is the page itself.
    """

    def __init__(self, gva: int, level: int, reason: str) -> None:
        super().__init__(f"gva {gva:#x} leads nowhere: at level {level} {reason}")
        self.gva = gva
        self.level = level


class Level(Record):
    """One kind of table: its entries' reach (1 << ``shift``), number and whether they may be pages.

    ``rights``: whether its entries say who may write and execute (a PAE directory pointer does
    not).
    """

    __slots__ = ("count", "large", "rights", "shift")
    shift: int
    count: int
    large: bool
    rights: bool

    def __init__(self, shift: int, count: int, large: bool, rights: bool = True) -> None:
        self._set(shift=shift, count=count, large=large, rights=rights)


LEGACY = (Level(22, 1024, False), Level(12, 1024, False))
LEGACY_LARGE = (Level(22, 1024, True), Level(12, 1024, False))
PAE = (Level(30, 4, False, False), Level(21, 512, True), Level(12, 512, False))
LONG = (
    Level(39, 512, False),
    Level(30, 512, True),
    Level(21, 512, True),
    Level(12, 512, False),
)
LONG_57 = (Level(48, 512, False), *LONG)


class Paging(Record):
    """How a vCPU translates: its control registers, and the form of tables that they mean."""

    __slots__ = ("bits", "entry_bytes", "levels", "no_execute", "root")
    root: int
    levels: tuple[Level, ...]
    entry_bytes: int
    bits: int
    no_execute: bool

    def __init__(self, cr3: int, cr4: int, efer: int, cr0: int = CR0_PG) -> None:
        long = bool(efer & EFER_LMA)
        entry_bytes, bits = 8, 32
        levels: tuple[Level, ...]
        if not cr0 & CR0_PG:
            levels, root = (), 0
        elif long:
            levels = LONG_57 if cr4 & CR4_LA57 else LONG
            root, bits = cr3 & ADDRESS, levels[0].shift + 9
        elif cr4 & CR4_PAE:
            levels, root = PAE, cr3 & 0xFFFFFFE0
        else:
            levels, root = LEGACY_LARGE if cr4 & CR4_PSE else LEGACY, cr3 & 0xFFFFF000
            entry_bytes = 4
        self._set(
            root=root, levels=levels, entry_bytes=entry_bytes, bits=bits,
            no_execute=bool(efer & EFER_NXE) and entry_bytes == 8,
        )  # fmt: skip

    @staticmethod
    def of(sregs: AnyMapping[str, Any]) -> Paging:
        """That of a vCPU's special registers, as KVM_GET_SREGS has them."""
        return Paging(sregs["cr3"], sregs["cr4"], sregs["efer"], sregs["cr0"])

    def at(self, root: int) -> Paging:
        """The same form with its top table elsewhere."""
        return self.replace(root=root)

    def canonical(self, gva: int) -> bool:
        """Whether this form has such an address."""
        if len(self.levels) < len(LONG):
            return 0 <= gva < 1 << 32
        top = gva >> (self.bits - 1)
        return top == 0 or top == (1 << (65 - self.bits)) - 1


class Mapping(Record):
    """``size`` bytes at ``gva`` that lie at ``gpa``; ``flags``: of "w", "u" and "x" what holds.

    Write access, access from user mode, execution: the rights of all levels together.
    """

    __slots__ = ("flags", "gpa", "gva", "size")
    gva: int
    gpa: int
    size: int
    flags: str

    def __init__(self, gva: int, gpa: int, size: int, flags: str) -> None:
        self._set(gva=gva, gpa=gpa, size=size, flags=flags)


def translate(memory: Memory, paging: Paging, gva: int) -> int:
    """The gpa of one address; PageFault when it leads nowhere. It may lie outside RAM."""
    gpa, size = _walk(_Entries(memory, paging), gva)
    return gpa + (gva & (size - 1))


def read(memory: Memory, paging: Paging, gva: int, length: int) -> bytes:
    """A copy of ``length`` bytes at ``gva``; PageFault, or ValueError for a page outside RAM."""
    parts = [_read_physical(memory, *span) for span in spans(memory, paging, gva, length)]
    return parts[0] if len(parts) == 1 else b"".join(parts)


def spans(memory: Memory, paging: Paging, gva: int, length: int) -> Iterator[tuple[int, int]]:
    """Where ``length`` bytes at ``gva`` lie: (gpa, size) of each stretch that hangs together.

    PageFault when the iteration comes to a page that leads nowhere.
    """
    entries = _Entries(memory, paging, whole=length > WHOLE_FROM_BYTES)
    begin = end = -1
    while length > 0:
        page, size = _walk(entries, gva)
        offset = gva & (size - 1)
        part = min(size - offset, length)
        if page + offset != end:
            if end > begin:
                yield begin, end - begin
            begin = page + offset
        end = page + offset + part
        gva += part
        length -= part
    if end > begin:
        yield begin, end - begin


def mappings(
    memory: Memory, paging: Paging, first: int = 0, last: int = (1 << 64) - 1
) -> Iterator[Mapping]:
    """Everything that is mapped from ``first`` to ``last``, in ascending order, made as asked for.

    Neighbours of the same rights whose memory hangs together are one. Tables outside RAM map
    nothing; GuestError after TABLES_MAX tables.
    """
    gva = gpa = size = 0
    flags = ""
    for at, to, reach, rights in _leaves(_Entries(memory, paging, whole=True), first, last):
        if at == gva + size and to == gpa + size and rights == flags:
            size += reach
            continue
        if size:
            yield Mapping(gva, gpa, size, flags)
        gva, gpa, size, flags = at, to, reach, rights
    if size:
        yield Mapping(gva, gpa, size, flags)


class _Entries:
    """Entries of tables; with ``whole`` a table is read at once and kept for the next entry."""

    def __init__(self, memory: Memory, paging: Paging, whole: bool = False) -> None:
        self.memory = memory
        self.paging = paging
        self._whole = whole
        self._tables: dict[int, tuple[int, ...]] = {}

    def entry(self, table: int, index: int, level: Level) -> int:
        """One entry; ValueError when the table is outside RAM."""
        if self._whole:
            return self.table(table, level)[index]
        size = self.paging.entry_bytes
        return int.from_bytes(self.memory.read(table + index * size, size), "little")

    def table(self, table: int, level: Level) -> tuple[int, ...]:
        """All entries of a table; ValueError when it is outside RAM."""
        found = self._tables.get(table)
        if found is None or len(found) != level.count:
            size = self.paging.entry_bytes * level.count
            form = f"<{level.count}{'Q' if self.paging.entry_bytes == 8 else 'I'}"
            found = struct.unpack(form, self.memory.read(table, size))
            if len(self._tables) >= KEPT_TABLES_MAX:
                self._tables.clear()
            self._tables[table] = found
        return found


def _walk(entries: _Entries, gva: int) -> tuple[int, int]:
    """(gpa, size) of the page that holds ``gva``."""
    paging = entries.paging
    if not paging.canonical(gva):
        raise PageFault(gva, len(paging.levels), "no address of this form of paging")
    if not paging.levels:
        return gva & ~(PAGE_SIZE - 1), PAGE_SIZE
    table, left = paging.root, len(paging.levels)
    for level in paging.levels:
        try:
            entry = entries.entry(table, gva >> level.shift & (level.count - 1), level)
        except ValueError:
            raise PageFault(gva, left, f"a table is at {table:#x}, outside RAM") from None
        if not entry & PRESENT:
            raise PageFault(gva, left, f"the entry is {entry:#x}, not present")
        if left == 1 or (level.large and entry & LARGE):
            break
        table = _table_of(entry, paging)
        left -= 1
    return _page_of(entry, level, paging), 1 << level.shift


def _table_of(entry: int, paging: Paging) -> int:
    return entry & ADDRESS if paging.entry_bytes == 8 else entry & 0xFFFFF000


def _page_of(entry: int, level: Level, paging: Paging) -> int:
    if paging.entry_bytes == 4 and level.shift > 12:
        # PSE-36: the address goes on above the entry's 32 bits.
        return (entry & LEGACY_LARGE_ADDRESS) | (entry >> 13 & 0xFF) << 32
    return entry & ADDRESS & ~((1 << level.shift) - 1)


def _leaves(entries: _Entries, first: int, last: int) -> Iterator[tuple[int, int, int, str]]:
    """(gva, gpa, size, flags) of each page from ``first`` to ``last``."""
    paging = entries.paging
    if not paging.levels:
        for gpa, size in entries.memory.regions:
            if gpa < 1 << 32:
                yield gpa, gpa, min(size, (1 << 32) - gpa), "wux"
        return
    budget = TABLES_MAX
    # Of each table under way: its level's number, gva of its first byte, rights so far, entries.
    rows = _present(entries, paging.root, paging.levels[0])
    under_way = [(0, 0, WRITABLE | USER, rows)]
    while under_way:
        depth, base, rights, rows = under_way[-1]
        level = paging.levels[depth]
        index, entry = next(rows, (0, 0))
        if not entry:
            under_way.pop()
            continue
        gva, reach = _extended(base + (index << level.shift), paging), 1 << level.shift
        if gva > last or gva + reach <= first:
            continue
        below = _rights(entry, rights, level, paging)
        if depth + 1 == len(paging.levels) or (level.large and entry & LARGE):
            yield gva, _page_of(entry, level, paging), reach, _flags(below)
            continue
        budget -= 1
        if not budget:
            raise GuestError(
                f"its page tables at {paging.root:#x} have more than {TABLES_MAX} tables",
                "ask for a part of the addresses",
            )
        rows = _present(entries, _table_of(entry, paging), paging.levels[depth + 1])
        under_way.append((depth + 1, base + (index << level.shift), below, rows))


def _present(entries: _Entries, table: int, level: Level) -> Iterator[tuple[int, int]]:
    """(index, entry) of the entries that are present."""
    try:
        found = entries.table(table, level)
    except ValueError:
        return iter(())
    return iter([(n, entry) for n, entry in enumerate(found) if entry & PRESENT])


def _extended(gva: int, paging: Paging) -> int:
    """The canonical form of an address."""
    if len(paging.levels) >= len(LONG) and gva >> (paging.bits - 1):
        return gva | (1 << 64) - (1 << paging.bits)
    return gva


def _rights(entry: int, above: int, level: Level, paging: Paging) -> int:
    """What an entry leaves of the rights of those above it."""
    rights = above & (entry | ~(WRITABLE | USER) if level.rights else ~0)
    return rights | (entry & NO_EXECUTE if paging.no_execute and level.rights else 0)


def _flags(rights: int) -> str:
    return (
        ("w" if rights & WRITABLE else "")
        + ("u" if rights & USER else "")
        + ("" if rights & NO_EXECUTE else "x")
    )


def _read_physical(memory: Memory, gpa: int, length: int) -> bytes:
    """Bytes that may lie in several regions next to each other."""
    try:
        return memory.read(gpa, length)
    except ValueError:
        head = PAGE_SIZE - gpa % PAGE_SIZE
        if length <= head:
            raise
    sizes = [head, *[PAGE_SIZE] * ((length - head) // PAGE_SIZE)]
    sizes += [length - sum(sizes)] if length > sum(sizes) else []
    parts = []
    for size in sizes:
        parts.append(memory.read(gpa, size))
        gpa += size
    return b"".join(parts)
