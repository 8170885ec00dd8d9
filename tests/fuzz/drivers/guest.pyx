"""Guest RAM with neighbours, and queues over it with their drivers."""

from libc.stdint cimport uint16_t, uint32_t

from vmm._native.memory.guestmem cimport GuestMemory
from vmm._native.virtio.virtqueue cimport VirtQueue

LOW = 1 << 20
HIGH_GPA, HIGH = 3 << 20, 1 << 20


class Found(AssertionError):
    """What a driver saw that may not be. ``index`` is the input's number."""

    def __init__(self, index, what):
        super().__init__(f"input {index}: {what}")
        self.index = index


cdef class Ram:
    def __init__(self):
        # Mapped with room for the neighbours, of which the memory then knows nothing.
        self.memory = GuestMemory([(0, LOW + NEIGHBOUR), (HIGH_GPA, HIGH + NEIGHBOUR)])
        for i in range(2):
            self.memory.table[i].size -= NEIGHBOUR
            self.ring.ram[i].gpa = self.memory.table[i].gpa
            self.ring.ram[i].size = self.memory.table[i].size
            self.ring.ram[i].hva = self.memory.table[i].hva
        if guest_neighbours(&self.ring):
            raise MemoryError
        self.there = True

    def unhurt(self):
        """Whether nothing was written behind it."""
        return bool(guest_neighbour_unhurt(&self.ring, NEIGHBOUR))

    def __dealloc__(self):
        if self.there:
            guest_neighbours_go(&self.ring)


cdef class Rig:
    def __init__(self, Ram ram, int number, uint16_t size, event_idx, indirect, make=VirtQueue):
        """``number`` says where its rings are: the last is at the very end of RAM."""
        cdef uint32_t rings = 16 * size + 6 + 2 * size + 8 + 8 * size + 16
        base = 0x1000 * number if number < 31 else (HIGH_GPA + HIGH - rings) & ~15
        driver = base + 16 * size
        device = (driver + 6 + 2 * size + 3) & ~3
        if number >= 31:
            device = HIGH_GPA + HIGH - (8 + 8 * size)
        self.ram = ram
        self.queue = make(ram.memory, size, base, driver, device, event_idx=event_idx,
                          indirect=indirect)
        self.ring = ram.ring
        self.ring.table = <GuestDescriptor *>self.queue.table
        self.ring.avail = self.queue.avail
        self.ring.used = self.queue.used
        self.ring.size = size
        self.ring.indirect = bool(indirect)

    cdef void renew(self, Dice *dice) noexcept nogil:
        self.queue.next_avail = self.ring.next_avail = <uint16_t>dice_roll(dice)
        self.queue.next_used = self.queue.signalled = <uint16_t>dice_roll(dice)
        self.ring.used[1] = self.queue.next_used
        self.ring.free = 0
        self.chains = 0

    cdef void expect(self) noexcept nogil:
        cdef uint16_t at = self.queue.next_avail
        cdef uint16_t index = self.ring.avail[1]
        self.chains = self.moves = 0
        self.broken = <uint16_t>(index - at) > self.ring.size
        while at != index and not self.broken and self.chains < 64:
            if guest_read_chain(&self.ring, at, &self.expected[self.chains], &self.moves) < 0:
                self.broken = True
                return
            self.chains += 1
            at += 1
        if at != index and not self.broken:
            self.moves = 1           # more than is kept: not looked at

    cdef uint16_t given_back(self, uint16_t before) noexcept nogil:
        return <uint16_t>(self.queue.next_used - before)


def rigs(Ram ram, sizes, make=VirtQueue):
    """Queues of these sizes with and without each feature; the last one's rings end where RAM does.
    """
    found = []
    for number, size in enumerate(sizes):
        found.append(Rig(ram, number + 1, size, number & 1, number & 2, make))
    found.append(Rig(ram, 31, max(sizes), True, True, make))
    return found
