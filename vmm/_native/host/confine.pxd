"""What a native thread does first: it gives up what its kind does not need."""

# The tables of vmm/confine/tables.py have the same order.
cdef enum Kind:
    KIND_NONE = -1               # ended before the guest runs, or held by its maker's filter
    KIND_CONTROL = 0
    KIND_VCPU = 1
    KIND_DISK = 2
    KIND_CONSOLE = 3
    KIND_RNG = 4
    KIND_PREFAULT = 5

# By the thread itself, before anything else. Does nothing unless arm() was called. A thread that
# cannot be confined ends the process, since nothing may run without.
cdef void confine_thread(int kind) noexcept nogil
