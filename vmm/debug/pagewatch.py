"""Watches larger ranges of memory: their pages lie in read-only slots, and a write comes to us.

The write is carried out here, so the guest goes on as if nothing were there; reads cost nothing.
Source: Documentation/virt/kvm/api.rst, 4.35 (KVM_MEM_READONLY).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm._native.kvm import bus
from vmm.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vmm.debug.points import Point
    from vmm.machine import Machine

PAGE = 4096
READONLY = 2
CAP_NR_MEMSLOTS = 10


def pieces(gpa: int, size: int, pages: Iterable[int]) -> list[tuple[int, int, bool]]:
    """[gpa, gpa + size) as (start, size, read-only); ``pages`` are the gpas of protected ones."""
    found: list[tuple[int, int, bool]] = []
    at = gpa
    for page in sorted(page for page in pages if gpa <= page < gpa + size):
        if page > at:
            found.append((at, page - at, False))
        if found and found[-1][2] and found[-1][0] + found[-1][1] == page:
            found[-1] = (found[-1][0], found[-1][1] + PAGE, True)
        else:
            found.append((page, PAGE, True))
        at = page + PAGE
    if at < gpa + size:
        found.append((at, gpa + size - at, False))
    return found


class PageWatch:
    """The read-only pages of a guest. The thread that drives it, while the guest stands still.

    A change takes some 10 ms: KVM waits for a grace period with each slot.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        # By gpa: what is watched in that page.
        self._pages: dict[int, list[Point]] = {}
        self._ranges: dict[Point, list[tuple[int, int]]] = {}
        self._extra: list[int] = []
        self._hits: list[Point] = []

    def __iter__(self) -> Iterator[Point]:
        return iter(self._ranges)

    def add(self, point: Point, ranges: Sequence[tuple[int, int]]) -> None:
        """Watch ``ranges``, (gpa, size) each; HostError when there are too many slots."""
        for gpa, size in ranges:
            # All of it is RAM, or ValueError says so.
            self._machine.memory.read(gpa, 1)
            self._machine.memory.read(gpa + size - 1, 1)
        self._ranges[point] = list(ranges)
        for page in self._pages_of(point):
            if page not in self._pages:
                self._pages[page] = []
                self._machine.mmio.attach(page, PAGE, _Page(self, page), f"watched {page:#x}")
            self._pages[page].append(point)
        try:
            self.lay_out()
        except HostError:
            self.remove(point)
            raise

    def remove(self, point: Point) -> None:
        """Watch them no more."""
        for page in self._pages_of(point):
            self._pages[page].remove(point)
            if not self._pages[page]:
                del self._pages[page]
                self._machine.mmio.detach(page)
        del self._ranges[point]
        self.lay_out()

    def _pages_of(self, point: Point) -> list[int]:
        found: set[int] = set()
        for gpa, size in self._ranges[point]:
            found.update(range(gpa & -PAGE, gpa + size, PAGE))
        return sorted(found)

    def lay_out(self) -> None:
        """Take all of RAM's slots away, and give them again as they must be now.

        With them KVM forgets what it knows of the guest's page tables.
        """
        vm = self._machine.vm.fd
        slots = self._machine.memory.slots
        wanted = [(n, hva - gpa, pieces(gpa, size, self._pages))
                  for n, (gpa, size, hva) in enumerate(slots)]  # fmt: skip
        count = sum(len(parts) - 1 for _, _, parts in wanted)
        limit = self._machine.vm.kvm.check_extension(CAP_NR_MEMSLOTS) or 32
        if count > limit // 2:
            raise HostError(
                f"{len(self._pages)} watched pages need {count} more memory slots",
                "watch fewer or adjoining pages",
            )
        for slot in self._extra:
            vm.set_user_memory_region(slot, 0, 0, 0)
        self._extra = []
        spare = iter(range(limit - 1, 0, -1))
        for first, shift, parts in wanted:
            # A slot cannot change its size or become read-only: it goes, and comes back.
            vm.set_user_memory_region(first, 0, 0, 0)
            for number, (gpa, size, read_only) in enumerate(parts):
                slot = first if number == 0 else next(spare)
                if number:
                    self._extra.append(slot)
                flags = READONLY if read_only else 0
                vm.set_user_memory_region(slot, gpa, size, gpa + shift, flags)

    def written(self, gpa: int, value: int, size: int) -> int:
        """A vCPU writes there: carry it out, and see who watches. Any vCPU thread."""
        self._machine.memory.write(gpa, value.to_bytes(size, "little"))
        hit = [
            point
            for point in self._pages.get(gpa & -PAGE, ())
            if any(gpa < first + length and first < gpa + size
                   for first, length in self._ranges[point])
        ]  # fmt: skip
        self._hits += hit
        return bus.STOP if any(point.enabled for point in hit) else bus.CONTINUE

    def take_hits(self) -> list[Point]:
        """Who has been hit since the last time: once each, in however many parts."""
        hits, self._hits = list(dict.fromkeys(self._hits)), []
        return hits


class _Page:
    """What the bus of addresses sees of one page."""

    # Nothing of the guest's: a snapshot does without.
    no_state = True

    def __init__(self, watch: PageWatch, gpa: int) -> None:
        self._watch = watch
        self._gpa = gpa

    def read(self, offset: int, size: int) -> int:
        """Not reached: KVM reads such pages itself."""
        raise RuntimeError(f"a read of RAM at {self._gpa + offset:#x} came to user space")

    def write(self, offset: int, value: int, size: int) -> int:
        """A write comes here."""
        return self._watch.written(self._gpa + offset, value, size)
