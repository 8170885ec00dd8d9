"""Owned file descriptors and the one funnel that turns a C result into an exception."""

cdef class OwnedFd:
    cdef readonly int fd
    cpdef void close(self)

# Raises IoctlError naming `what` when rc is negative (errno is read at once); else returns rc.
cdef int check(long rc, const char *what) except -1
