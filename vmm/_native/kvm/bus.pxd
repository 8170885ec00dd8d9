"""The table that sends a port or MMIO access to a device.

A target is native (a BusTarget with a C handler, run without the GIL) or a Python object with
``read(offset, size)`` and ``write(offset, value, size)`` (run with the GIL: set-up time only).
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    /* Looked at first: vCPUs that use one device at once must not take its line from each other. */
    static inline void vmm_touch(uint8_t *mark) {
        if (!__atomic_load_n(mark, __ATOMIC_RELAXED))
            __atomic_store_n(mark, 1, __ATOMIC_RELAXED);
    }
    """
    void vmm_touch(uint8_t *mark) nogil

cdef enum:
    OUTCOME_CONTINUE = 0     # back into the guest
    OUTCOME_RESET = 1        # the guest asked for a reset
    OUTCOME_SHUTDOWN = 2     # the guest powered itself off
    OUTCOME_KICKED = 3       # the run was interrupted by kick()
    OUTCOME_CRASH = 4        # the guest cannot go on (triple fault is a reset, not this)
    OUTCOME_ERROR = 5        # a device raised, or KVM_RUN failed
    OUTCOME_STOP = 6         # the vCPU stands still for whoever drives it, and can go on
    OUTCOME_FAULT = 7        # of an access to an MSR: the guest gets #GP

# `data` has `size` bytes (1, 2, 4 or 8), little endian, prefilled with 0xff for reads.
ctypedef int (*bus_handler)(void *opaque, uint64_t offset, uint8_t *data, uint32_t size,
                            int is_write) noexcept nogil

cdef class BusTarget:
    cdef bus_handler handler      # set by the subclass; opaque is the object itself
    cdef uint8_t touched          # an access came since Bus.clear_touched()

# Carries accesses to a Python object's read() and write(), taking the GIL for each. A subclass may
# serve some registers natively in a handler of its own and hand the rest to python_access().
cdef class PythonTarget(BusTarget):
    cdef object device
    cdef Bus bus                  # set by attach(), as is the name: who hears of an exception
    cdef str name

cdef int python_access(void *opaque, uint64_t offset, uint8_t *data, uint32_t size,
                       int is_write) noexcept nogil

# For a native thread that may come to Python targets: it gets a Python thread state with its first
# access to one, and keeps it. Not at once: that needs the GIL, and a guest shall not wait for it.
cdef void own_thread_begins() noexcept nogil
cdef void own_thread_ends() noexcept nogil
# Before a thread takes the GIL for longer than one access; see own_thread_begins().
cdef void keep_state() noexcept nogil
# Says that the calling thread runs vCPU `index` (-1: none) from now on; returns what was said last.
cdef int vcpu_begins(int index) noexcept nogil
cdef int vcpu_here() noexcept nogil

cdef class Bus:
    cdef readonly str name
    cdef void *table              # of bustable.pxd, with everything attached and covering
    cdef void *waiting            # tables from before, while somebody reads them
    cdef dict owners              # start -> (target, name, length): keeps every target alive
    cdef dict covering            # the same of what stands in front of devices
    cdef list retired             # targets detached while a vCPU may still be inside them
    cdef object on_error          # hears what a Python target raised, on the vCPU's thread
    cdef public object error      # without it: the first exception, else None
    cdef readonly uint64_t changes       # how often a range came, went or moved
    cdef public uint32_t ring_offset     # of kept writes in a vCPU's mapping; 0: none are kept
    cdef int ring_lock                   # who takes them out (see coalesced.pxd)

    # Sends one access; a miss leaves `data` untouched (all ones for a read). Any vCPU thread.
    cdef int access(self, uint64_t address, uint8_t *data, uint32_t size,
                    int is_write) noexcept nogil
    cdef int script_access(self, uint64_t address, int size, uint8_t *data, uint64_t value,
                           int is_write) except -1
    cdef int device_raised(self, PythonTarget target, error) noexcept
    # The same for whoever stands in front of the device: it alone.
    cdef int device_access(self, uint64_t address, uint8_t *data, uint32_t size,
                           int is_write) noexcept nogil
    cdef int add(self, bint covers, start, length, target, str name) except -1
    cdef int remove(self, bint covers, start) except -1
