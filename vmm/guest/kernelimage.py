"""Where Linux lies in guest RAM: by the page tables of a vCPU, or by its banner.

A kernel's image is one stretch of physical memory, aligned to 2 MiB, that its page tables map high
up; where KASLR put it, neither address is known beforehand. Everything read here is the guest's.
Source: Documentation/arch/x86/x86_64/mm.rst; arch/x86/Kconfig (PHYSICAL_ALIGN).
"""

from __future__ import annotations

from vmm.errors import GuestError
from vmm.guest import pagetables
from vmm.light.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm.guest.pagetables import Memory, Paging

# __START_KERNEL_map, and the end of what KASLR uses of it.
KERNEL_START = 0xFFFFFFFF << 32 | 1 << 31
KERNEL_END = KERNEL_START + (1 << 30)
# More than any image has; a guest's tables may claim more.
IMAGE_BYTES_MAX = 256 << 20
PHYSICAL_ALIGN = 2 << 20
BANNER = b"Linux version "
BANNERS_MAX = 64
BANNER_BYTES_MAX = 512
SCAN_BYTES = 4 << 20
# User page tables of a kernel with page table isolation lie right behind the kernel's own.
ISOLATION_BIT = 1 << 12


class Stretch(Record):
    """``size`` bytes of the image at ``gpa``; ``gva`` is None where only RAM was looked at."""

    __slots__ = ("gpa", "gva", "size")
    gpa: int
    gva: int | None
    size: int

    def __init__(self, gpa: int, size: int, gva: int | None = None) -> None:
        self._set(gpa=gpa, gva=gva, size=size)


def kernel_paging(memory: Memory, paging: Paging) -> tuple[Paging, list[Stretch]]:
    """The tables that map the kernel's image, and its stretches; an empty list without one.

    With page table isolation a vCPU in user mode has tables that lack it: their sisters have it.
    The banner tells which is right.
    """
    for root in sorted({paging.root, paging.root & ~ISOLATION_BIT}, reverse=True):
        at = paging.at(root)
        found = list(mapped(memory, at))
        if found and next(banners(memory, found), None) is not None:
            return at, found
    return paging, []


def mapped(memory: Memory, paging: Paging) -> Iterator[Stretch]:
    """What the tables map where a kernel's image is, whatever the rights."""
    if len(paging.levels) < 4:
        return
    gva = gpa = size = total = 0
    try:
        for part in pagetables.mappings(memory, paging, KERNEL_START, KERNEL_END - 1):
            total += part.size
            if total > IMAGE_BYTES_MAX:
                break
            if size and part.gva == gva + size and part.gpa == gpa + size:
                size += part.size
                continue
            if size:
                yield Stretch(gpa, size, gva)
            gva, gpa, size = part.gva, part.gpa, part.size
    except GuestError:
        pass  # more tables than a kernel has: what came so far has to do
    if size:
        yield Stretch(gpa, size, gva)


def banners(memory: Memory, stretches: list[Stretch] | None = None) -> Iterator[int]:
    """The gpa of each place in RAM that looks like a kernel's banner.

    It ends with a newline, which its copy in the log has not. Without ``stretches`` all RAM is
    read, some 5 GB a second.
    """
    for gpa, _ in zip(search(memory, BANNER, stretches), range(BANNERS_MAX), strict=False):
        if _is_text_line(memory, gpa):
            yield gpa


def search(memory: Memory, needle: bytes, stretches: list[Stretch] | None = None) -> Iterator[int]:
    """The gpa of each place where ``needle`` is, in all RAM or in some of it."""
    for place in stretches or [Stretch(gpa, size) for gpa, size in memory.regions]:
        yield from _hits(memory, place, needle)


def _is_text_line(memory: Memory, gpa: int) -> bool:
    try:
        return b"\n" in memory.read(gpa, BANNER_BYTES_MAX).partition(b"\0")[0][-1:]
    except ValueError:
        return False


def _hits(memory: Memory, place: Stretch, needle: bytes) -> Iterator[int]:
    """The gpa of each place where ``needle`` is; a stretch may reach beyond RAM."""
    for start, size in memory.regions:
        first, end = max(start, place.gpa), min(start + size, place.gpa + place.size)
        while first < end:
            data = memory.read(first, min(SCAN_BYTES + len(needle) - 1, end - first))
            at = data.find(needle)
            while at >= 0:
                yield first + at
                at = data.find(needle, at + 1)
            first += SCAN_BYTES


def read_around(memory: Memory, gpa: int, before: int, after: int) -> bytes:
    """Whole pages: up to so much of the region around an address; ValueError outside RAM."""
    for start, size in memory.regions:
        if start <= gpa < start + size:
            first = max(start, (gpa - before) & ~(pagetables.PAGE_SIZE - 1))
            return memory.read(first, min(start + size, gpa + after) - first)
    raise ValueError(f"{gpa:#x} is not in guest RAM")
