"""Guest physical memory as bytes and numpy arrays; it never shows the patches of breakpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm.layout import PAGE_SIZE
from vmm.light.shown import Shown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Protocol

    import numpy

    from vmm.debug.patches import Patches

    class Memory(Protocol):
        """What is needed of guest RAM, wherever it is; GuestMemory has it."""

        @property
        def regions(self) -> list[tuple[int, int]]:
            """(gpa, size) of each region."""

        @property
        def size(self) -> int:
            """All RAM in bytes."""

        def read(self, gpa: int, length: int) -> bytes:
            """A copy; ValueError unless inside one region."""

        def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
            """Copy ``data`` to ``gpa``."""

        def view(self, gpa: int, length: int) -> memoryview:
            """A memoryview, no copy."""

        def describe(self) -> str:
            """The regions as text for messages."""


FIND_CHUNK = 4 << 20
ADDRESS_MASK = (1 << 64) - 1


def by_page(address: int, length: int) -> Iterator[tuple[int, int]]:
    """(address, size) of a range's part in each page; behind the last address comes the first."""
    while length > 0:
        address &= ADDRESS_MASK
        size = min(PAGE_SIZE - address % PAGE_SIZE, length)
        yield address, size
        address += size
        length -= size


class Ram(Shown):
    """The guest's RAM by guest physical address (gpa). Any thread; ValueError outside of it.

    read() and write() copy; view() and numpy() share the memory, live and writable.
    """

    def __init__(self, memory: Memory, patches: Patches) -> None:
        self._memory = memory
        self._patches = patches

    @property
    def regions(self) -> list[tuple[int, int]]:
        """(gpa, size in bytes) of each stretch of RAM."""
        return self._memory.regions

    @property
    def size(self) -> int:
        """All RAM in bytes."""
        return self._memory.size

    def read(self, gpa: int, length: int) -> bytes:
        """A copy of ``length`` bytes."""
        return self._patches.read(gpa, length)

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Copy ``data`` to ``gpa``."""
        self._patches.lift(gpa, len(data))
        self._memory.write(gpa, data)

    def view(self, gpa: int, length: int) -> memoryview:
        """A writable memoryview of [gpa, gpa + length), no copy."""
        self._patches.show_memory()
        return self._memory.view(gpa, length)

    def numpy(
        self, gpa: int, shape: int | tuple[int, ...], dtype: Any = "uint8"
    ) -> numpy.ndarray[Any, Any]:
        """A numpy array of that shape and type over the RAM at ``gpa``, no copy, writable."""
        import numpy

        count = 1
        for extent in shape if isinstance(shape, tuple) else (shape,):
            if extent < 0:
                raise ValueError(f"an array of shape {shape}")
            count *= extent
        kind = numpy.dtype(dtype)
        view = self.view(gpa, count * kind.itemsize) if count else b""
        return numpy.frombuffer(view, dtype=kind, count=count).reshape(shape)

    def find(self, needle: bytes, start: int = 0) -> Iterator[int]:
        """The gpas at which ``needle`` stands, from ``start`` on, in ascending order."""
        if not needle:
            raise ValueError("an empty string stands everywhere")
        for gpa, size in self._memory.regions:
            yield from self._find_in(needle, max(gpa, start), gpa + size)

    def _find_in(self, needle: bytes, gpa: int, end: int) -> Iterator[int]:
        while gpa + len(needle) <= end:
            length = min(FIND_CHUNK + len(needle) - 1, end - gpa)
            data = self.read(gpa, length)
            place = data.find(needle)
            while place >= 0:
                yield gpa + place
                place = data.find(needle, place + 1)
            gpa += FIND_CHUNK

    def __repr__(self) -> str:
        return f"<guest RAM {self._memory.describe() or '(closed)'}>"
