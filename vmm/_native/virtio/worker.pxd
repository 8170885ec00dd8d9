"""What every queue worker shares: its thread, its eventfds, and how it says that it broke."""

from vmm._native.host.thread cimport Thread

cdef enum Stopping:
    GOES_ON = 0
    STOPS = 1
    PAUSES = 2

cdef class Worker:
    cdef Thread thread
    cdef int kind                # a Kind of confine.pxd
    cdef int stop_fd
    cdef int stopping            # a Stopping
    cdef readonly int broken     # a BROKEN_ reason of the virtqueue; 0: fine
    cdef int config_call_fd

    cdef void halt(self, int how=*) noexcept
    cdef void loop(self) noexcept nogil
    cdef void break_queue(self, int reason) noexcept nogil
    cdef bint stop_asked(self) noexcept nogil
    # Not for a pause: what was begun is finished then, and answered as it should be.
    cdef bint stop_for_good(self) noexcept nogil

cdef void signal_fd(int fd) noexcept nogil
cdef void drain_fd(int fd) noexcept nogil
