"""A running guest's RAM as copies: by its descriptor, or by requests where RAM is private."""

from __future__ import annotations

import os
from errno import ENXIO
from typing import TYPE_CHECKING, Any

from vmm.errors import HostError
from vmm.run.attach.wire import READ_MAX, WRITE_MAX

if TYPE_CHECKING:
    from vmm.debug.attach.link import Link

# Shorter reads do not pay for a look whether there is anything.
LOOK_FROM_BYTES = 1 << 16
# So much is asked for at once.
AHEAD_BYTES = 8 << 20


class Regions:
    """Where guest RAM is, and where in all of it an address lies."""

    def __init__(self, link: Link, regions: list[tuple[int, int]]) -> None:
        self.link = link
        self.regions = regions

    @property
    def size(self) -> int:
        """All RAM in bytes."""
        return sum(size for _, size in self.regions)

    def describe(self) -> str:
        """The regions as text for messages."""
        return ", ".join(f"[{gpa:#x}, {gpa + size:#x})" for gpa, size in self.regions)

    def place(self, gpa: int, length: int) -> tuple[int, int]:
        """(number of the region, offset of ``gpa`` in it); ValueError unless inside one."""
        for index, (start, size) in enumerate(self.regions):
            if start <= gpa and 0 <= length <= size - (gpa - start):
                return index, gpa - start
        raise ValueError(f"[{gpa:#x}, {gpa + length:#x}) is not inside guest RAM {self.describe()}")

    def offset(self, gpa: int, length: int) -> int:
        """Where in the descriptor: one region is right behind the other there."""
        index, within = self.place(gpa, length)
        return sum(size for _, size in self.regions[:index]) + within


class FileMemory(Regions):
    """Shared RAM, read from its descriptor: what the guest never touched stays untouched.

    Any thread. HostError once the guest has rebooted or ended.
    """

    def read(self, gpa: int, length: int) -> bytes:
        """A copy of ``length`` bytes; ValueError unless inside one region."""
        offset = self.offset(gpa, length)
        self.link.check()
        if length >= LOOK_FROM_BYTES and self._hole(offset, length):
            return bytes(length)
        parts = []
        while length > 0:
            part = os.pread(self.link.ram_fd, length, offset)
            if not part:
                raise HostError("guest RAM ends before its end", "attach again")
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _hole(self, offset: int, length: int) -> bool:
        try:
            return os.lseek(self.link.ram_fd, offset, os.SEEK_DATA) >= offset + length
        except OSError as error:
            return error.errno == ENXIO  # from there on there is nothing


class AskedMemory(Regions):
    """Private RAM: copies by the connection. Any thread; HostError once the guest is gone."""

    def read(self, gpa: int, length: int) -> bytes:
        """A copy of ``length`` bytes; ValueError unless inside one region."""
        self.place(gpa, length)
        parts: list[bytes] = []
        for at in range(0, length, AHEAD_BYTES):
            parts += self._read(gpa + at, min(AHEAD_BYTES, length - at))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read(self, gpa: int, length: int) -> list[bytes]:
        """In pieces, all of which are asked for at once: the instance need not wait for us."""
        sizes = [min(READ_MAX, length - at) for at in range(0, length, READ_MAX)]
        answers = self.link.ask_all(
            [
                {"command": "read", "gpa": gpa + number * READ_MAX, "length": size}
                for number, size in enumerate(sizes)
            ]
        )
        return [
            self._piece(told, data, size) for (told, data), size in zip(answers, sizes, strict=True)
        ]

    def _piece(self, told: dict[str, Any], data: bytes, length: int) -> bytes:
        if told.get("zeros") == length and not data:
            return bytes(length)
        if len(data) != length:
            raise self.link.nonsense(f"{len(data)} bytes of RAM in place of {length}")
        return data

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Copy ``data`` to ``gpa``; HostError when attached to read only."""
        view = memoryview(data).cast("B")
        self.place(gpa, len(view))
        for at in range(0, len(view), WRITE_MAX):
            self.link.ask("write", bytes(view[at : at + WRITE_MAX]), gpa=gpa + at)

    def view(self, gpa: int, length: int) -> memoryview:
        """Not possible: HostError says what helps."""
        raise HostError(
            f"the RAM of the instance {self.link.name} is private (shared=off): no other process "
            "can map it",
            "read() copies it; or start it with shared=on in VLLMD_HYPERVISOR_MEMORY_CONFIG",
        )

    def close(self) -> None:
        """Nothing to give back."""


class Ahead(Regions):
    """RAM that is read from its begin to its end, in larger pieces than are asked for."""

    def __init__(self, memory: AskedMemory) -> None:
        super().__init__(memory.link, memory.regions)
        self._memory = memory
        self._at, self._piece = 0, b""

    def read(self, gpa: int, length: int) -> bytes:
        """A copy of ``length`` bytes; ValueError unless inside one region."""
        if not self._at <= gpa <= gpa + length <= self._at + len(self._piece):
            index, within = self.place(gpa, length)
            left = self.regions[index][1] - within
            self._at = gpa
            self._piece = self._memory.read(gpa, max(length, min(AHEAD_BYTES, left)))
        return self._piece[gpa - self._at :][:length]
