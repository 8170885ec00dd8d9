"""The symbols of a guest's kernel, found when they are first needed and there are some.

An ELF kernel has its own. A bzImage's are read out of guest RAM, once its kernel has unpacked
itself there: where KASLR has put it nobody knows before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.errors import GuestError
from vmm.guest.kernelimage import BANNER, KERNEL_START, kernel_paging
from vmm.guest.symbolat import is_elf
from vmm.guest.symbols import Symbols

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from vmm.debug.cpumemory import CpuMemory
    from vmm.debug.ram import Ram

    class BootCpu(Protocol):
        """What is asked of vCPU 0."""

        @property
        def address(self) -> int:
            """Where it stands."""

        @property
        def memory(self) -> CpuMemory:
            """By its page tables."""


BANNER_NAME = "linux_banner"


class FoundSymbols:
    """What a guest has found of its kernel's symbols, for its forks: theirs is the same kernel."""

    def __init__(self) -> None:
        self.is_elf: bool | None = None
        self.newest: Symbols | None = None


class KernelSymbols:
    """Where a guest has its symbols from. The thread that drives it, while it stands still."""

    def __init__(self, kernel_path: str, ram: Ram, boot_cpu: Callable[[], BootCpu]) -> None:
        self._path = kernel_path
        self._ram = ram
        self._boot_cpu = boot_cpu
        self.known = FoundSymbols()
        self._found: Symbols | None = None
        self._unsure = False
        # The root of the page tables that had no kernel in them: not looked at again and again.
        self._seen_root = -1

    def get(self) -> Symbols | None:
        """The symbols, or None while there are none."""
        known = self.known
        if known.is_elf is None:
            elf = is_elf(self._path)
            known.newest = self._of_elf() if elf else None
            known.is_elf = elf
        if known.is_elf:
            return known.newest
        if self._unsure:
            self._unsure = False
            if self._found is not None and not self._still_there(self._found):
                self._found = None
        if self._found is None:
            self._found = self._of_ram()
            known.newest = self._found or known.newest
        return self._found

    def share(self, known: FoundSymbols) -> None:
        """Know what the other guests of the family have found, if it is there in this one, too."""
        self.known = known
        self._found = known.newest
        self._unsure = True

    def _still_there(self, symbols: Symbols) -> bool:
        """The kernel that has these symbols runs there, as its banner shows."""
        try:
            return self._boot_cpu().memory.read(symbols[BANNER_NAME], len(BANNER)) == BANNER
        except (KeyError, ValueError):
            return False

    def require(self) -> Symbols:
        """The symbols; GuestError says what is missing."""
        found = self.get()
        if found is None:
            raise GuestError(
                f"no symbols of {self._path} are known (yet)",
                "a bzImage has them once its kernel runs: run(until=NAME) waits for that; or give "
                "an address",
            )
        return found

    def find_behind(self, entry: int) -> None:
        """Those of the kernel unpacked at gpa ``entry``, none of which has run yet."""
        self._found = Symbols.from_ram(self._ram, image=entry)

    def forget(self) -> None:
        """The guest got another state: its kernel may be elsewhere, or not there."""
        self._unsure = True
        self._seen_root = -1

    def at(self, address: int) -> str | None:
        """``name+0x12``, None where nothing is known."""
        found = self.get()
        return None if found is None else found.at(address)

    def resolve(self, where: str | int) -> int:
        """The address of a symbol, or an address as it is."""
        if isinstance(where, int):
            if not 0 <= where < 1 << 64:
                raise ValueError(f"{where:#x} is no linear address")
            return where
        if not isinstance(where, str):
            raise TypeError(f"{where!r} is neither a symbol's name nor an address")
        return self.require().resolve(where)

    def _of_elf(self) -> Symbols | None:
        try:
            return Symbols.from_elf(self._path)
        except GuestError:
            return None  # stripped, as tiny guests are

    def _of_ram(self) -> Symbols | None:
        cpu = self._boot_cpu()
        paging = cpu.memory.paging
        if not paging.levels or paging.root == self._seen_root:
            return None
        if not kernel_paging(self._ram, paging)[1]:
            # The unpacking code has tables of its own, under which nothing will ever show.
            if cpu.address < KERNEL_START:
                self._seen_root = paging.root
            return None
        try:
            return Symbols.of(self._path, self._ram, paging)
        except GuestError:
            return None
