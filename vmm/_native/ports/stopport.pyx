"""A port whose writes make the vCPU stand still: what software breakpoints are made of."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from vmm._native.kvm.bus cimport OUTCOME_CONTINUE, OUTCOME_STOP, BusTarget

cdef int stop_access(void *opaque, uint64_t offset, uint8_t *data, uint32_t size,
                     int is_write) noexcept nogil:
    return OUTCOME_STOP if is_write else OUTCOME_CONTINUE


cdef class StopPort(BusTarget):
    """Reads as ones; a write ends with the outcome STOP."""

    def __cinit__(self):
        self.handler = stop_access

    def state(self):
        """Nothing is kept."""
        return {"version": 1}

    def set_state(self, state):
        """A state() again, which has been checked (devices/native_state.py)."""
