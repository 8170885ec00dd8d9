"""Port 0x80: power-on self test codes. Kernels write it for a delay, so it must cost nothing."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from vmm._native.kvm.bus cimport OUTCOME_CONTINUE, BusTarget


cdef int post_access(void *opaque, uint64_t offset, uint8_t *data, uint32_t size,
                     int is_write) noexcept nogil:
    # SAFETY: the bus keeps the object alive while it is attached.
    if is_write:
        (<PostPort>opaque).note(data[0])
    return OUTCOME_CONTINUE


cdef class PostPort(BusTarget):
    """Remembers the last code and how many there were."""

    cdef readonly uint8_t last
    cdef readonly uint64_t count

    def __cinit__(self):
        self.handler = post_access

    cdef void note(self, uint8_t code) noexcept nogil:
        self.last = code
        self.count += 1

    def state(self):
        """The last code and how many there were."""
        return {"version": 1, "last": self.last, "count": self.count}

    def set_state(self, state):
        """A state() again, whose values have been checked (devices/native_state.py)."""
        self.last, self.count = state["last"], state["count"]
