"""What is read out of a guest's RAM: tables, symbols, types, stacks; a guest writes them all."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from tests.fuzz.target import Dice, PythonTarget
from tests.support.btf_builder import Builder
from tests.support.fake_kernel import FORMS, LINKED
from tests.support.fake_kernel import kallsyms as make_kallsyms
from vmm._native.memory.guestmem import GuestMemory
from vmm.errors import GuestError
from vmm.guest import backtrace, btf, kallsyms, orc, pagetables, vmcoreinfo
from vmm.guest.pagetables import CR4_LA57, CR4_PAE, CR4_PSE, EFER_LMA, EFER_NXE, Paging

if TYPE_CHECKING:
    from pathlib import Path

RAM = 1 << 20
PAGES = RAM // 4096


class Kallsyms(PythonTarget):
    """A kernel's symbols, damaged: symbols in order, or a ValueError."""

    name = "kallsyms"
    refusals = (ValueError, GuestError)
    plants = ("unchecked",)
    quick = 1000
    rows = [("T", f"function_{n}", LINKED + 16 * n) for n in range(300)]

    def plant(self, fault: str) -> None:
        """Names are shown as the guest wrote them."""
        kallsyms._split = lambda name: (chr(name[0]), name[1:].decode("latin-1"))

    def begin(self, folder: Path) -> None:
        """As PythonTarget."""
        self._tables = [make_kallsyms(self.rows, LINKED, form) for form in FORMS if form != "x"]

    def one(self, dice: Dice) -> None:
        """As PythonTarget."""
        data = bytearray(dice.choice(self._tables))
        for _ in range(dice.randrange(4)):
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        if dice.chance(3):
            data = bytearray(dice.mutated(bytes(data), 3))
        elif dice.chance(2):
            # In the tokens, which all names are made of.
            at = data.find(kallsyms.DIGITS) + dice.randrange(-30, 200)
            data[at] = data[at] and dice.randrange(1, 256)
        table = kallsyms.parse(bytes(256) + data + bytes(4096))
        addresses = [table.address(n) for n in range(len(table))]
        assert 0 < len(table) <= kallsyms.SYMBOLS_MAX
        assert all(0 <= address < 1 << 64 for address in addresses)
        assert table.index_at(dice.integer()) < len(table)
        names = table.names()
        assert len(names) == len(table)
        assert all(name.isprintable() for _, name in names)


class PageTables(PythonTarget):
    """Page tables of any content, of every form, against a walk that is written here on its own."""

    name = "page-tables"
    plants = ("unchecked",)
    quick = 500

    def plant(self, fault: str) -> None:
        """Large pages are taken for tables."""
        pagetables.LARGE = 0

    def begin(self, folder: Path) -> None:
        """As PythonTarget."""
        self._memory = GuestMemory([(0, RAM)])

    def end(self) -> None:
        """As PythonTarget."""
        self._memory.close()

    def one(self, dice: Dice) -> None:
        """As PythonTarget."""
        memory = self._memory
        for page in range(8):
            for _ in range(4):
                self._write_entry(dice, page)
        cr4 = dice.choice((CR4_PAE, CR4_PAE, CR4_PAE | CR4_LA57, 0, CR4_PSE))
        efer = dice.choice((EFER_LMA | EFER_NXE, EFER_LMA, 0)) if cr4 & CR4_PAE else 0
        paging = Paging(4096 * dice.randrange(8), cr4, efer)
        gva = self._address(dice, paging)
        dice.input = (paging, hex(gva))
        expected = walk(memory, paging, gva)
        try:
            assert pagetables.translate(memory, paging, gva) == expected
        except pagetables.PageFault:
            assert expected is None
        try:
            data = pagetables.read(memory, paging, gva, 1 + dice.randrange(9000))
            assert expected is not None
            assert data[:1] == memory.read(expected, 1)
        except ValueError:
            pass
        for count, mapping in enumerate(pagetables.mappings(memory, paging)):
            assert mapping.size > 0
            if count > 50:
                break

    def _write_entry(self, dice: Dice, page: int) -> None:
        target = dice.choice((dice.randrange(8), dice.randrange(PAGES), dice.randrange(1 << 20)))
        flags = dice.choice((0x3, 0x7, 0x83, 0x1, 0x0, 0x8000000000000003, dice.integer()))
        entry = (4096 * target | flags) & (1 << 64) - 1
        at = 4096 * page + 8 * dice.choice((0, 1, 511, 256, dice.randrange(512)))
        self._memory.write(at, entry.to_bytes(8, "little"))

    def _address(self, dice: Dice, paging: Paging) -> int:
        if dice.chance(8):
            return dice.integer()
        gva = dice.randrange(4096)
        for level in paging.levels:
            index = dice.choice((0, 1, level.count - 1, level.count // 2))
            gva |= index << level.shift
        top = gva >> (paging.bits - 1) & 1
        return gva | ((1 << 64) - (1 << paging.bits) if top and len(paging.levels) > 3 else 0)


def walk(memory: GuestMemory, paging: Paging, gva: int) -> int | None:
    """The gpa by Intel's manual (volume 3, 5.3 to 5.5); None for a fault or what is not in RAM."""
    if not paging.canonical(gva):
        return None
    table, size = paging.root, paging.entry_bytes
    for level in paging.levels:
        at = table + size * (gva >> level.shift & (level.count - 1))
        if at + size > RAM:
            return None
        entry = int.from_bytes(memory.read(at, size), "little")
        if not entry & 1:
            return None
        offset = (1 << level.shift) - 1
        if level.shift == 12 or (level.large and entry & 0x80):
            if size == 4 and level.shift == 22:
                # PSE-36: bits 13 to 20 are bits 32 to 39 of the address.
                base = entry & 0xFFC00000 | (entry >> 13 & 0xFF) << 32
            else:
                base = entry & ((1 << 52) - 1) & ~0xFFF & ~offset
            return base | gva & offset
        table = entry & ((1 << 52) - 1) & ~0xFFF
    return None


class Orc(PythonTarget):
    """Unwind tables and stacks of any content: few frames, no error but ValueError."""

    name = "orc"
    plants = ("unchecked",)
    quick = 1000
    code = LINKED

    def plant(self, fault: str) -> None:
        """What a table's entry says of registers is believed."""
        usual = backtrace._frame_end

        def frame_end(state: Any, entry: orc.Entry, read: Any) -> int:
            straight = (orc.SP, orc.BP, orc.SP_INDIRECT, orc.BP_INDIRECT)
            if entry.sp_reg in straight:
                return usual(state, entry, read)
            return state.regs[orc.RARE[entry.sp_reg]]

        backtrace._frame_end = frame_end

    def one(self, dice: Dice) -> None:
        """As PythonTarget."""
        count = dice.choice((1, 2, 3, 20))
        places, entries = LINKED + 0x10000, LINKED + 0x20000
        symbols = Symbols({
            "__start_orc_unwind_ip": places, "__stop_orc_unwind_ip": places + 4 * count,
            "__start_orc_unwind": entries, "__stop_orc_unwind": entries + 6 * count,
            **({"orc_header": 1} if dice.chance(2) else {}),
        })  # fmt: skip
        for name in list(symbols.known):
            if dice.chance(40):
                symbols.known[name] = dice.integer()
        stack = dice.randbytes(4096)
        bits = [struct.pack("<hhH", dice.choice((8, 16, -8, 0x7FF8)), dice.choice((-16, 0, 8)),
                            dice.getrandbits(16)) for _ in range(count)]  # fmt: skip
        distances = b"".join(
            struct.pack("<i", LINKED + 32 * n - (places + 4 * n)) for n in range(count)
        )
        areas = {places: distances, entries: b"".join(bits), LINKED + 0x30000: stack}

        def read(gva: int, length: int) -> bytes:
            for at, data in areas.items():
                if at <= gva and gva + length <= at + len(data):
                    return data[gva - at :][:length]
            raise ValueError("not there")

        regs = {name: LINKED + 0x30000 + 8 * dice.randrange(500) for name in REGISTERS}
        regs["rip"] = dice.choice((LINKED, LINKED + 33, LINKED + 32 * count, dice.integer()))
        if dice.chance(8):
            regs[dice.choice(REGISTERS)] = dice.integer()
        frames = backtrace.backtrace(regs, read, symbols, 64)
        assert 1 <= len(frames) <= 64


REGISTERS = ("rip", "rsp", "rbp", "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10",
             "r11", "r12", "r13", "r14", "r15", "rflags")  # fmt: skip


class Symbols:
    """As much of a kernel's symbols as an unwinder asks for."""

    def __init__(self, known: dict[str, int]) -> None:
        self.known = known

    def get(self, name: str) -> int | None:
        """The address of a name."""
        return self.known.get(name)

    def at(self, address: int) -> str | None:
        """A name for code of the image."""
        return f"function+{address - LINKED:#x}" if LINKED < address < LINKED + 4096 else None


class VmCoreInfo(PythonTarget):
    """The kernel's note, anywhere in RAM and damaged: its text, or none."""

    name = "vmcoreinfo"
    plants = ("unchecked",)
    quick = 500
    text = b"OSRELEASE=6.1.0\nPAGESIZE=4096\nKERNELOFFSET=1f600000\n"

    def plant(self, fault: str) -> None:
        """A note's size is believed."""
        vmcoreinfo.text_of = lambda note: note[24 : 24 + 2000]

    def begin(self, folder: Path) -> None:
        """As PythonTarget."""
        self._memory = GuestMemory([(0, RAM)])

    def end(self) -> None:
        """As PythonTarget."""
        self._memory.close()

    def one(self, dice: Dice) -> None:
        """As PythonTarget."""
        note = vmcoreinfo.HEADER.pack(11, len(self.text), 0, b"VMCOREINFO\0\0") + self.text
        data = dice.mutated(note, 4)
        at = 4 * dice.choice((0, dice.randrange(RAM // 4 - 200), (RAM - len(data)) // 4 - 2))
        self._memory.write(at, data)
        try:
            found = vmcoreinfo.find_vmcoreinfo(self._memory)
        finally:
            self._memory.write(at, bytes(len(data)))
        if found is not None:
            assert found.isascii()
            assert found.startswith(vmcoreinfo.BEGIN)
            assert found in data + bytes(4096)
        if data == note and at + 24 + 4096 < RAM:
            assert found == self.text


class Btf(PythonTarget):
    """Descriptions of types, damaged: members and sizes, or a GuestError."""

    name = "btf"
    refusals = (GuestError, KeyError)
    plants = ("unchecked",)
    quick = 500

    def plant(self, fault: str) -> None:
        """A name is taken for ASCII."""
        btf.Btf._name = lambda self, at: self._names[at:].partition(b"\0")[0].decode("ascii")

    def begin(self, folder: Path) -> None:
        """As PythonTarget."""
        made = Builder()
        number = made.number("int")
        inner = made.struct("inner", 8, ("a", number, 0), ("b", number, 32))
        made.struct("outer", 16, ("x", number, 0), ("", inner, 64), ("self", 3, 0))
        made.struct("either", 4, ("p", number, 0), ("q", number, 0), kind=5)
        self._data = made.data()

    def one(self, dice: Dice) -> None:
        """As PythonTarget."""
        types: Any = btf.Btf(dice.mutated(self._data, 4))
        for name in ("outer", "inner", "either", "none"):
            if name in types:
                assert types.size(name) >= 0
                members = types.members(name)
                assert len(members) < 100_000
        types.offset("outer", "b")


TARGETS = (Kallsyms(), PageTables(), Orc(), VmCoreInfo(), Btf())
