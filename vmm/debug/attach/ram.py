"""Guest physical memory of a running instance's guest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.debug.ram import Ram

if TYPE_CHECKING:
    from vmm.debug.ram import Memory


class AttachedRam(Ram):
    """The guest's RAM by guest physical address (gpa). Any thread; ValueError outside of it.

    view() and numpy() share shared RAM, live, and writable if that was asked for when attaching;
    of private RAM (shared=off) there are only copies.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def read(self, gpa: int, length: int) -> bytes:
        """A copy of ``length`` bytes."""
        return self._memory.read(gpa, length)

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Copy ``data`` to ``gpa``; HostError when attached to read only."""
        self._memory.write(gpa, data)

    def view(self, gpa: int, length: int) -> memoryview:
        """A memoryview of [gpa, gpa + length), no copy; HostError for private RAM."""
        return self._memory.view(gpa, length)
