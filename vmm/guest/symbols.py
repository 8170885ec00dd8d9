"""Names to guest addresses and back: of an ELF vmlinux, a System.map, or the kernel in RAM itself.

A file has the addresses of the link; where KASLR moved the kernel, its image in RAM tells how far.
Of several symbols of one name the lowest counts, of several at one address the first.
"""

from __future__ import annotations

from bisect import bisect_right

from vmm.errors import GuestError
from vmm.guest import kallsyms, pagetables, symbolfiles
from vmm.guest.kernelimage import BANNER, KERNEL_START, Stretch, kernel_paging
from vmm.guest.pagetables import CR4_LA57, CR4_PAE, EFER_LMA, EFER_NXE, Paging
from vmm.guest.symbolat import DAMAGED, is_elf, name_and_offset, nearest_in

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm.guest.pagetables import Memory
    from vmm.guest.symbolat import Table

# More than distributions' kernels have.
IMAGE_BYTES = 64 << 20
CLOSE_NAMES = 5
CLOSE_AMONG_MAX = 4000


class FileTable:
    """The symbols of a file."""

    def __init__(self, rows: list[symbolfiles.Row]) -> None:
        self._rows = sorted(rows, key=lambda row: row[0])
        self._addresses = [row[0] for row in self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def address(self, index: int) -> int:
        """The address of one."""
        return self._addresses[index]

    def index_at(self, address: int) -> int:
        """The last one up to an address; -1 for none."""
        return bisect_right(self._addresses, address) - 1

    def name(self, index: int) -> tuple[str, str]:
        """(letter as in nm(1), name) of one."""
        return self._rows[index][1:3]

    def names(self) -> list[tuple[str, str]]:
        """(letter as in nm(1), name) of each."""
        return [row[1:3] for row in self._rows]

    def size(self, index: int) -> int:
        """What the file says of one's size; 0 where it says nothing."""
        return self._rows[index][3]


class Symbols:
    """A kernel's symbols, where it runs. A mapping of names to addresses, and more.

    ``source`` says where they are from, ``slide`` how far KASLR moved the kernel (0 where the
    addresses are the running kernel's own). Once made, any thread may use it.
    """

    def __init__(self, table: Table, source: str, slide: int = 0) -> None:
        self.table = table
        self._by_name: dict[str, int] | None = None
        self.source = source
        self.slide = slide

    @classmethod
    def from_elf(cls, path: str, slide: int = 0) -> Symbols:
        """Of an ELF file with a symbol table; GuestError for one that has none or is damaged."""
        try:
            rows = symbolfiles.elf_rows(path) if is_elf(path) else []
        except DAMAGED as error:
            raise GuestError(f"{path}: its symbols cannot be read: {error}", "copy it again") from (
                error
            )
        if not rows:
            raise GuestError(f"{path} has no symbol table", "give a vmlinux that is not stripped")
        return cls(FileTable(rows), path, slide)

    @classmethod
    def from_map(cls, path: str, slide: int = 0) -> Symbols:
        """Of a System.map; GuestError for a file that is none."""
        try:
            rows = list(symbolfiles.map_rows(path))
        except DAMAGED as error:
            raise GuestError(f"{path} cannot be read: {error}", "give a System.map") from error
        if not rows:
            raise GuestError(
                f"{path} has no symbols in it", "install the kernel's -dbg package, which has it"
            )
        return cls(FileTable(rows), path, slide)

    @classmethod
    def from_ram(
        cls, memory: Memory, paging: Paging | None = None, image: int | None = None
    ) -> Symbols:
        """Of the Linux that runs in this RAM; GuestError where there is none (yet).

        With a vCPU's ``paging``, or a gpa at the begin of the kernel's ``image`` (its entry), some
        50 MiB are looked at, without them all RAM.
        """
        stretches = [Stretch(image, IMAGE_BYTES)] if image is not None else []
        if paging is not None and not stretches:
            stretches = kernel_paging(memory, paging)[1]
        table = kallsyms.find(memory, stretches) if stretches else None
        table = table or kallsyms.find(memory)
        if table is None:
            raise GuestError(
                "no symbols in guest RAM: no Linux with kallsyms runs there (yet)",
                "let the guest run until its kernel has unpacked itself, or give a vmlinux",
            )
        return cls(table, "kallsyms")

    @classmethod
    def of(cls, kernel_path: str, memory: Memory, paging: Paging | None = None) -> Symbols:
        """The best there are for a guest: of its kernel file, of the System.map beside it, of RAM.

        GuestError where there are none (yet).
        """
        found = _of_file(kernel_path)
        if found is None:
            return cls.from_ram(memory, paging)
        found.slide = running_slide(found, memory, paging)
        return found

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __contains__(self, name: object) -> bool:
        return name in self._names()

    def __getitem__(self, name: str) -> int:
        index = self._names().get(name)
        if index is None:
            raise KeyError(self._unknown(name))
        return self._address(index)

    def get(self, name: str, default: int | None = None) -> int | None:
        """The address, or ``default`` for a name that there is not."""
        index = self._names().get(name)
        return default if index is None else self._address(index)

    def resolve(self, where: int | str) -> int:
        """An address as it is, or of ``name`` or ``name+0x12``; KeyError, ValueError."""
        if isinstance(where, int):
            return where
        name, plus, offset = where.partition("+")
        if not plus:
            return self[name]
        try:
            return self[name.strip()] + int(offset, 0)
        except ValueError:
            raise ValueError(f"{where!r}: {offset!r} is no number (name+0x12)") from None

    def at(self, address: int) -> str | None:
        """``name+0x12`` for an address; None when no symbol is near."""
        found = self.nearest(address)
        return None if found is None else name_and_offset(found[0], address - found[1])

    def nearest(self, address: int) -> tuple[str, int] | None:
        """(name, its address) of the last symbol up to an address; None when none is near."""
        if address < KERNEL_START <= self.table.address(len(self.table) - 1):
            return None  # a user's or a physical one; what is per CPU has such numbers, too
        linked = address - self.slide if address >= KERNEL_START else address
        found = nearest_in(self.table, linked)
        return None if found is None else (found[0], found[1] + address - linked)

    def search(self, pattern: str) -> dict[str, int]:
        """Names that match a pattern of the shell ("sys_*"), with their addresses, in order."""
        from fnmatch import translate
        from re import compile as compile_pattern

        match = compile_pattern(translate(pattern)).match
        names = self._names()
        return {name: self._address(index) for name, index in names.items() if match(name)}

    def address_and_size(self, name: str) -> tuple[int, int]:
        """Where a symbol is and how long: as the file says, else up to the next symbol."""
        address, table = self[name], self.table
        index = self._names()[name]
        size = table.size(index) if isinstance(table, FileTable) else 0
        start = table.address(index)
        while not size and index + 1 < len(table):
            index += 1
            size = table.address(index) - start
        return address, size

    def __repr__(self) -> str:
        moved = f", moved by {self.slide:#x}" if self.slide else ""
        return f"<Symbols: {len(self)} from {self.source}{moved}>"

    def _names(self) -> dict[str, int]:
        """The index of each name, in the order of addresses; made at first use."""
        if self._by_name is None:
            found: dict[str, int] = {}
            try:
                for index, (_, name) in enumerate(self.table.names()):
                    found.setdefault(name, index)
            except DAMAGED as error:
                raise GuestError(
                    f"the symbols in guest RAM are damaged: {error}", "give a vmlinux"
                ) from error
            self._by_name = found
        return self._by_name

    def _address(self, index: int) -> int:
        address = self.table.address(index)
        # What is per CPU has small numbers, which nothing moves.
        return address + self.slide if address >= KERNEL_START else address

    def _unknown(self, name: str) -> str:
        from difflib import get_close_matches

        names = self._names()
        near = [each for each in names if name and name in each]
        if not near:
            alike = [n for n in names if n[:2] == name[:2] and abs(len(n) - len(name)) < 4]
            near = get_close_matches(name, alike[:CLOSE_AMONG_MAX], CLOSE_NAMES)
        near = sorted(near, key=len)[:CLOSE_NAMES]
        hint = f"; there are {', '.join(near)}" if near else ""
        return f"no symbol {name!r} in {self.source}{hint}"


def running_slide(symbols: Symbols, memory: Memory, paging: Paging | None) -> int:
    """How far the kernel in RAM is from where its file has it: 0 where it does not show.

    Where its image begins gives it away, else its own symbol table; its banner proves it.
    """
    text, banner = symbols.get("_text"), symbols.get("linux_banner")
    if text is None or banner is None or paging is None:
        return 0
    at, stretches = kernel_paging(memory, paging)
    if not stretches:
        return 0
    guesses = [0, min(stretch.gva or 0 for stretch in stretches) - text]
    for slide in guesses:
        if _reads_banner(memory, at, banner + slide):
            return slide
    table = kallsyms.find(memory, stretches)
    for index, (_, name) in enumerate(table.names() if table is not None else []):
        if table is not None and name == "_text":
            slide = table.address(index) - text
            return slide if _reads_banner(memory, at, banner + slide) else 0
    return 0


def _of_file(kernel_path: str) -> Symbols | None:
    """Those of the kernel file or the System.map beside it; None where neither has any."""
    path = symbolfiles.map_path(kernel_path)
    for make, name in ((Symbols.from_elf, kernel_path), (Symbols.from_map, path)):
        try:
            if name is not None:
                return make(name)
        except GuestError:
            continue
    return None


def _reads_banner(memory: Memory, paging: Paging, gva: int) -> bool:
    try:
        return pagetables.read(memory, paging, gva, len(BANNER)) == BANNER
    except ValueError:
        return False


def own_paging(memory: Memory, symbols: Symbols) -> Paging | None:
    """The kernel's own page tables, where no vCPU can be asked: by its symbols from RAM.

    None where these are of a file, or the tables do not lead to the kernel that they are said to.
    """
    table, root = symbols.table, symbols.get("init_top_pgt")
    banner = symbols.get("linux_banner")
    if not isinstance(table, kallsyms.Kallsyms) or root is None or banner is None:
        return None
    for cr4 in (CR4_PAE, CR4_PAE | CR4_LA57):
        paging = Paging(root + table.delta, cr4, EFER_LMA | EFER_NXE)
        if _reads_banner(memory, paging, banner):
            return paging
    return None
