"""Base of the native threads that serve virtqueues."""

from libc.stdint cimport uint64_t
from posix.unistd cimport close as c_close, read as c_read, write as c_write

from vmm._native.host.fd import IoctlError
from vmm._native.host.thread cimport thread_join, thread_start

import os

cdef extern from *:
    """
    #define worker_load(p) __atomic_load_n(p, __ATOMIC_SEQ_CST)
    #define worker_store(p, v) __atomic_store_n(p, v, __ATOMIC_SEQ_CST)
    """
    int worker_load(int *p) nogil
    void worker_store(int *p, int v) nogil


cdef void signal_fd(int fd) noexcept nogil:
    cdef uint64_t one = 1
    if fd >= 0:
        c_write(fd, &one, sizeof(one))


cdef void drain_fd(int fd) noexcept nogil:
    cdef uint64_t value
    c_read(fd, &value, sizeof(value))


cdef void worker_main(void *arg) noexcept nogil:
    # SAFETY: stop() joins this thread before the object goes.
    (<Worker>arg).loop()


cdef class Worker:
    """One thread that serves the queues of a device. start() and stop() need the GIL."""

    def __cinit__(self, *args, **kwargs):
        # Nothing here may fail: a subclass whose fields are not set yet would be taken apart.
        self.config_call_fd = self.stop_fd = -1

    def __dealloc__(self):
        self.halt()
        if self.stop_fd >= 0:
            c_close(self.stop_fd)

    def start(self, str name):
        """Start serving; the name is seen in ps -L. OSError without descriptor or thread.

        Does nothing for one that serves. After pause() it goes on, unless its ring is broken.
        """
        if self.thread.started or self.broken:
            return
        if self.stop_fd < 0:
            self.stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        drain_fd(self.stop_fd)
        worker_store(&self.stopping, GOES_ON)
        cdef bytes encoded = name.encode()
        cdef int rc = thread_start(&self.thread, self.kind, encoded, worker_main, <void *>self)
        if rc:
            raise IoctlError(rc, f"pthread_create for {name}")

    def stop(self):
        """End the thread; when it returns no guest buffer is in use. Idempotent."""
        self.halt()

    def pause(self):
        """End the thread between two requests, all answered; start() lets it go on. Idempotent."""
        self.halt(PAUSES)

    cdef void halt(self, int how=STOPS) noexcept:
        if self.thread.started:
            worker_store(&self.stopping, how)
            signal_fd(self.stop_fd)
            with nogil:
                thread_join(&self.thread)

    cdef bint stop_asked(self) noexcept nogil:
        return worker_load(&self.stopping) != GOES_ON

    cdef bint stop_for_good(self) noexcept nogil:
        return worker_load(&self.stopping) == STOPS

    cdef void loop(self) noexcept nogil:
        return

    cdef void break_queue(self, int reason) noexcept nogil:
        # virtio 1.2, 2.1.2: the device needs a reset and says so by a configuration interrupt.
        self.broken = reason
        signal_fd(self.config_call_fd)
