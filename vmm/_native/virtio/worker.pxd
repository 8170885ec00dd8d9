"""What every queue worker shares: its thread, its eventfds, and how it says that it broke."""

from vmm._native.host.thread cimport Thread

cdef class Worker:
    cdef Thread thread
    cdef int stop_fd
    cdef int stopping
    cdef readonly int broken     # a BROKEN_ reason of the virtqueue; 0: fine
    cdef int config_call_fd

    cdef void halt(self) noexcept
    cdef void loop(self) noexcept nogil
    cdef void break_queue(self, int reason) noexcept nogil
    cdef bint stop_asked(self) noexcept nogil

cdef void signal_fd(int fd) noexcept nogil
cdef void drain_fd(int fd) noexcept nogil
