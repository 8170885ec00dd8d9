"""Owned file descriptors and the funnel of errors from ioctls."""

from libc.errno cimport errno
from posix.unistd cimport close as c_close

import os


class IoctlError(OSError):
    """An ioctl (or another system call) that failed; ``ioctl`` is the kernel's name of it."""

    def __init__(self, code, ioctl):
        super().__init__(code, f"{ioctl}: {os.strerror(code)}")
        self.ioctl = ioctl


cdef int check(long rc, const char *what) except -1:
    if rc < 0:
        raise IoctlError(errno, what.decode())
    return <int>rc


cdef class OwnedFd:
    """A file descriptor that is closed exactly once: by close() or with its owner."""

    def __cinit__(self, int fd, *rest):
        self.fd = fd

    def __dealloc__(self):
        if self.fd >= 0:
            c_close(self.fd)
            self.fd = -1

    cpdef void close(self):
        """Close now; calling again does nothing."""
        if self.fd >= 0:
            c_close(self.fd)
            self.fd = -1

    def fileno(self):
        """The descriptor's number; -1 once closed."""
        return self.fd
