"""The ACPI power management timer: 3,579,545 Hz, 32 bits, read without the GIL.

Firmware spins on it for every delay. Source: ACPI 6.5, 4.8.2.1 and 4.8.3.3.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from vmm._native.kvm.bus cimport OUTCOME_CONTINUE, BusTarget

cdef extern from *:
    """
    #include <stdint.h>
    #include <time.h>
    /* 3,579,545 ticks a second; 128 bits, so that it cannot overflow. */
    static uint32_t vmm_pm_ticks(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        unsigned __int128 ns = (unsigned __int128)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
        return (uint32_t)(ns * 3579545u / 1000000000u);
    }
    """
    uint32_t vmm_pm_ticks() nogil


cdef class PmTimer(BusTarget)


cdef int pm_timer_access(void *opaque, uint64_t offset, uint8_t *data, uint32_t size,
                         int is_write) noexcept nogil:
    cdef uint32_t ticks
    if not is_write and size == 4 and offset == 0:
        # SAFETY: the bus keeps the object alive while it is attached.
        ticks = vmm_pm_ticks() + (<PmTimer>opaque).base
        memcpy(data, &ticks, 4)
    return OUTCOME_CONTINUE


cdef class PmTimer(BusTarget):
    """The timer's port; only 4-byte reads decode. ``base`` is what the host's clock lacks."""

    cdef uint32_t base

    def __cinit__(self):
        self.handler = pm_timer_access

    def state(self):
        """What a read would give now."""
        return {"version": 1, "ticks": <uint32_t>(vmm_pm_ticks() + self.base)}

    def set_state(self, state):
        """Go on from a state(), whose value has been checked (devices/native_state.py)."""
        cdef uint32_t ticks = state["ticks"]
        self.base = ticks - vmm_pm_ticks()
