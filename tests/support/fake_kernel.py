"""RAM that looks like a running Linux: page tables, a banner, kallsyms of any form, ORC tables."""

from __future__ import annotations

import struct

from vmm._native.memory.guestmem import GuestMemory
from vmm.guest.kallsyms import SYMBOLS_MIN
from vmm.guest.kernelimage import KERNEL_START
from vmm.guest.pagetables import CR4_LA57, CR4_PAE, EFER_LMA, EFER_NXE, Paging

LINKED = KERNEL_START + 0x1000000
RAM_BYTES = 16 << 20
IMAGE_GPA = 0x400000
IMAGE_BYTES = 4 << 20
STACK_GPA = 0x200000
# The direct map, where the stack is.
DIRECT = 0xFFFF888000000000
TABLES_GPA = 0x10000
BANNER = b"Linux version 6.1.0 (somebody@somewhere) (gcc) #1 SMP today\n\0"
BANNER_OFFSET = 0x200040
PER_CPU = ("A", "per_cpu_thing", 0x1F000)
FORMS = ("5.10", "6.1", "6.12", "no-percpu")
MORE_TOKENS = ("sys_", "do_", "vfs_", "x64_", "read", "write", "_handler")


class Tables:
    """Page tables of 4 or 5 levels, written into RAM one mapping at a time."""

    def __init__(self, memory: GuestMemory, levels: int = 4, at: int = TABLES_GPA) -> None:
        self.memory = memory
        self.levels = levels
        self.root = self._next = at
        self._new()

    def _new(self) -> int:
        self.memory.write(self._next, bytes(4096))
        self._next += 4096
        return self._next - 4096

    def map(self, gva: int, gpa: int, flags: int = 0x3, level: int = 1) -> None:
        """One page: of 4 KiB at level 1, 2 MiB at 2, 1 GiB at 3."""
        table = self.root
        for depth in range(self.levels, level, -1):
            at = table + 8 * (gva >> (12 + 9 * (depth - 1)) & 511)
            entry = int.from_bytes(self.memory.read(at, 8), "little")
            if not entry & 1:
                entry = self._new() | 0x7
                self.memory.write(at, entry.to_bytes(8, "little"))
            table = entry & ~0xFFF & (1 << 52) - 1
        at = table + 8 * (gva >> (12 + 9 * (level - 1)) & 511)
        entry = gpa | flags | (0x80 if level > 1 else 0)
        self.memory.write(at, entry.to_bytes(8, "little"))

    @property
    def paging(self) -> Paging:
        cr4 = CR4_PAE | (CR4_LA57 if self.levels == 5 else 0)
        return Paging(self.root, cr4, EFER_LMA | EFER_NXE)


class FakeKernel:
    """16 MiB of RAM with an image whose ``symbols`` are (letter, name, offset in the image).

    ``form`` is the Linux whose kallsyms these are; ``slide`` is what KASLR added.
    """

    def __init__(
        self,
        symbols: list[tuple[str, str, int]],
        form: str = "6.12",
        slide: int = 0,
        levels: int = 4,
        orc: list[tuple[int, tuple[int, int, int]]] = (),
    ) -> None:
        self.base = LINKED + slide
        self.memory = GuestMemory.anonymous([(0, RAM_BYTES)])
        tables = Tables(self.memory, levels)
        for offset in range(0, IMAGE_BYTES, 2 << 20):
            tables.map(self.base + offset, IMAGE_GPA + offset, level=2)
        for offset in range(0, RAM_BYTES, 2 << 20):
            tables.map(DIRECT + offset, offset, level=2)
        self.paging = tables.paging
        more = [("D", "linux_banner", BANNER_OFFSET), ("T", "_text", 0)]
        if orc:
            more += self._write_orc(orc, form)
        # Fewer than a kernel has would be no symbol table.
        more += [("d", f"filler_{n}", 0x3F0000 + 8 * n) for n in range(SYMBOLS_MIN)]
        rows = sorted([*symbols, *more], key=lambda row: row[2])
        per_cpu = [] if form == "no-percpu" else [PER_CPU]
        # (letter, name, address) of each, in order.
        self.rows = [*per_cpu, *[(t, n, self.base + offset) for t, n, offset in rows]]
        self.memory.write(IMAGE_GPA + BANNER_OFFSET, BANNER)
        self.kallsyms_gpa = IMAGE_GPA + BANNER_OFFSET + 0x1000
        self.kallsyms = kallsyms(self.rows, self.base, form)
        self.memory.write(self.kallsyms_gpa, self.kallsyms)

    def gpa(self, address: int) -> int:
        return address - self.base + IMAGE_GPA

    def _write_orc(self, orc, form) -> list[tuple[str, str, int]]:
        """Entries are (offset in the image, (sp_offset, bp_offset, bits)), in order."""
        at, entries_at = 0x300000, 0x300000 + 4 * len(orc)
        for n, (offset, entry) in enumerate(orc):
            distance = offset - (at + 4 * n)
            self.memory.write(IMAGE_GPA + at + 4 * n, struct.pack("<i", distance))
            self.memory.write(IMAGE_GPA + entries_at + 6 * n, struct.pack("<hhH", *entry))
        found = [
            ("R", "__start_orc_unwind_ip", at), ("R", "__stop_orc_unwind_ip", entries_at),
            ("R", "__start_orc_unwind", entries_at),
            ("R", "__stop_orc_unwind", entries_at + 6 * len(orc)),
        ]  # fmt: skip
        return [*found, ("R", "orc_header", at)] if form == "6.12" else found


def kallsyms(rows: list[tuple[str, str, int]], base: int, form: str) -> bytes:
    """The tables as scripts/kallsyms.c writes them; ``rows`` are (letter, name, address)."""
    tokens = _tokens([letter + name for letter, name, _ in rows])
    names, markers = b"", []
    for n, (letter, name, _) in enumerate(rows):
        if n % 256 == 0:
            markers.append(len(names))
        packed = _packed(letter + name, tokens)
        length = len(packed)
        head = bytes([length]) if length < 128 else bytes([length & 127 | 128, length >> 7])
        names += head + packed
    count = struct.pack("<I4x", len(rows))
    marks = struct.pack(f"<{len(markers)}I", *markers)
    table = b"".join(token.encode("latin-1") + b"\0" for token in tokens)
    places = [sum(len(token) + 1 for token in tokens[:n]) for n in range(256)]
    index = struct.pack("<256H", *places)
    offsets = struct.pack(f"<{len(rows)}i", *[_offset(row[2], base, form) for row in rows])
    order = sorted(range(len(rows)), key=lambda n: rows[n][1])
    sequence = b"".join(n.to_bytes(3, "big") for n in order)
    where = struct.pack("<Q", base)
    if form == "5.10":
        parts = [offsets, where, count, names, marks, table, index]
    elif form == "6.1":
        parts = [offsets, where, count, names, marks, sequence, table, index]
    else:
        parts = [count, names, marks, table, index, offsets, where, sequence]
    return b"".join(part + bytes(-len(part) % 8) for part in parts)


def _offset(address: int, base: int, form: str) -> int:
    if form == "no-percpu":
        return address - base
    return address if address < KERNEL_START else base - 1 - address


def _tokens(names: list[str]) -> list[str]:
    used = set("".join(names)) | set("0123456789")
    tokens = [chr(n) if chr(n) in used else "" for n in range(256)]
    free = [n for n in range(256) if not tokens[n]]
    for n, token in zip(free, MORE_TOKENS, strict=False):
        tokens[n] = token
    return tokens


def _packed(name: str, tokens: list[str]) -> bytes:
    out = []
    while name:
        best = max((t for t in tokens if t and name.startswith(t)), key=len)
        out.append(tokens.index(best))
        name = name[len(best) :]
    return bytes(out)
