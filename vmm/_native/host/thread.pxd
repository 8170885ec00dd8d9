"""Native threads: named, with every signal blocked, so that the control thread gets them all."""

from posix.types cimport pid_t

cdef extern from "pthread.h" nogil:
    ctypedef unsigned long pthread_t

ctypedef void (*thread_main)(void *arg) noexcept nogil

# It stays where it is from thread_start() to thread_join(): the thread reads it.
cdef struct Thread:
    pthread_t handle
    bint started
    int kind
    thread_main main
    void *arg
    char name[16]

# 0, or the errno of pthread_create. The name is cut to 15 bytes by the kernel's limit. `kind`, of
# confine.pxd, is which system calls it makes; others end the process, where it is confined.
cdef int thread_start(Thread *thread, int kind, const char *name, thread_main main,
                      void *arg) noexcept nogil
# The same, on the processors of a bitmap alone (`size` bytes; 0: all that are the caller's); EINVAL
# when none of them may be used.
cdef int thread_start_on(Thread *thread, int kind, const char *name, thread_main main, void *arg,
                         const void *bitmap, size_t size) noexcept nogil
# Waits for the end of a started thread; does nothing for one that never started. Never call it
# with the GIL held when the thread's main may want the GIL.
cdef void thread_join(Thread *thread) noexcept nogil
# For a thread that may wait in a write: called by itself, lets thread_join_urging() end the wait.
cdef void thread_heed_urging() noexcept nogil
# As thread_join(); a thread that has not ended after a tenth of a second is urged with a signal,
# again and again: a system call that waits then returns EINTR, or what it has done so far.
cdef void thread_join_urging(Thread *thread) noexcept nogil
