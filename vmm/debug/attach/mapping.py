"""A running guest's shared RAM, mapped into this process: live, and no copy."""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import TYPE_CHECKING

from vmm.debug.attach.memory import FileMemory
from vmm.errors import HostError

if TYPE_CHECKING:
    from vmm.debug.attach.link import Link


class MappedMemory(FileMemory):
    """Each region is mapped when somebody first wants to see it. Any thread.

    What was mapped stays while a view of it is used, also when the guest is long gone.
    """

    def __init__(self, link: Link, regions: list[tuple[int, int]], writable: bool = False) -> None:
        super().__init__(link, regions)
        self.writable = writable
        self._maps: dict[int, mmap.mmap] = {}

    def view(self, gpa: int, length: int) -> memoryview:
        """A memoryview of [gpa, gpa + length), writable if that was asked for when attaching."""
        index, at = self.place(gpa, length)
        self.link.check()
        if index not in self._maps:
            self._maps[index] = self._map(index)
        return memoryview(self._maps[index])[at : at + length]

    def _map(self, index: int) -> mmap.mmap:
        access = mmap.ACCESS_WRITE if self.writable else mmap.ACCESS_READ
        start, size = self.regions[index]
        return mmap.mmap(self.link.ram_fd, size, access=access, offset=self.offset(start, size))

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Copy ``data`` to ``gpa``; HostError when attached to read only."""
        view = memoryview(data).cast("B")
        if not self.writable:
            raise HostError(
                f"the instance {self.link.name} is attached to read only",
                "attach with write=True",
            )
        self.view(gpa, len(view))[:] = view

    def close(self) -> None:
        """Unmap; while a view is in use its mapping stays until that is gone. Idempotent."""
        maps, self._maps = self._maps, {}
        for each in maps.values():
            with suppress(BufferError):
                each.close()
