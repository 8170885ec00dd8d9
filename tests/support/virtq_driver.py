"""The driver's side of a split virtqueue, in real guest memory (virtio 1.2, 2.7)."""

from __future__ import annotations

import struct

from vmm._native.memory.guestmem import GuestMemory

NEXT = 1
WRITE = 2
INDIRECT = 4


class DriverQueue:
    """Builds chains as a driver does; buffers are given as (gpa, length, writable)."""

    def __init__(self, memory: GuestMemory, base_gpa: int, size: int) -> None:
        self.memory = memory
        self.size = size
        self.desc_gpa = base_gpa
        self.driver_gpa = base_gpa + 16 * size
        self.device_gpa = (self.driver_gpa + 6 + 2 * size + 3) & ~3
        self.end_gpa = self.device_gpa + 6 + 8 * size
        self.avail_idx = 0
        self.seen_used = 0
        self.free = list(range(size))

    def areas(self) -> tuple[int, int, int]:
        return self.desc_gpa, self.driver_gpa, self.device_gpa

    def descriptor(self, index: int, gpa: int, length: int, flags: int, next_: int = 0) -> None:
        self.memory.write(
            self.desc_gpa + 16 * index,
            struct.pack("<QIHH", gpa & (1 << 64) - 1, length, flags, next_),
        )

    def add(self, buffers: list[tuple[int, int, bool]]) -> int:
        """A chain of direct descriptors, made available; returns its head."""
        indices = [self.free.pop(0) for _ in buffers]
        for n, (gpa, length, writable) in enumerate(buffers):
            last = n == len(buffers) - 1
            flags = (WRITE if writable else 0) | (0 if last else NEXT)
            self.descriptor(indices[n], gpa, length, flags, 0 if last else indices[n + 1])
        self.publish(indices[0])
        self.chains = getattr(self, "chains", {})
        self.chains[indices[0]] = indices
        return indices[0]

    def add_indirect(self, table_gpa: int, buffers: list[tuple[int, int, bool]]) -> int:
        for n, (gpa, length, writable) in enumerate(buffers):
            last = n == len(buffers) - 1
            flags = (WRITE if writable else 0) | (0 if last else NEXT)
            self.memory.write(
                table_gpa + 16 * n, struct.pack("<QIHH", gpa, length, flags, 0 if last else n + 1)
            )
        head = self.free.pop(0)
        self.descriptor(head, table_gpa, 16 * len(buffers), INDIRECT)
        self.publish(head)
        self.chains = getattr(self, "chains", {})
        self.chains[head] = [head]
        return head

    def publish(self, head: int) -> None:
        slot = self.driver_gpa + 4 + 2 * (self.avail_idx % self.size)
        self.memory.write(slot, struct.pack("<H", head))
        self.avail_idx = self.avail_idx + 1 & 0xFFFF
        self.set_avail_idx(self.avail_idx)

    def set_avail_idx(self, value: int) -> None:
        self.memory.write(self.driver_gpa + 2, struct.pack("<H", value))

    def set_avail_flags(self, value: int) -> None:
        self.memory.write(self.driver_gpa, struct.pack("<H", value))

    def set_used_event(self, value: int) -> None:
        self.memory.write(self.driver_gpa + 4 + 2 * self.size, struct.pack("<H", value))

    def avail_event(self) -> int:
        return struct.unpack("<H", self.memory.read(self.device_gpa + 4 + 8 * self.size, 2))[0]

    def used_flags(self) -> int:
        return struct.unpack("<H", self.memory.read(self.device_gpa, 2))[0]

    def used_idx(self) -> int:
        return struct.unpack("<H", self.memory.read(self.device_gpa + 2, 2))[0]

    def take_used(self) -> tuple[int, int] | None:
        """The next used element (head, length), its descriptors freed; None when there is none."""
        if self.used_idx() == self.seen_used:
            return None
        entry = self.device_gpa + 4 + 8 * (self.seen_used % self.size)
        head, length = struct.unpack("<II", self.memory.read(entry, 8))
        self.seen_used = self.seen_used + 1 & 0xFFFF
        self.free += self.chains.pop(head, [])
        return head, length
