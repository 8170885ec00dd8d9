"""What consoles need of C: locks, a clock, eventfds, a ring's copies, poll() and accept()."""

from libc.stdint cimport int64_t, uint8_t, uint64_t

cdef enum:
    # A descriptor that does not do what poll() promised is asked again after a while: a terminal
    # with room for one byte takes no line feed, a background job may not read its terminal, and
    # without descriptors nobody is accepted. Asked at once it would cost a whole CPU.
    WRITE_REST_MS = 10
    WRITE_REST_MAX_MS = 500
    READ_REST_MS = 250
    ACCEPT_REST_MS = 500

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <poll.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/socket.h>
    #include <time.h>
    #include <unistd.h>
    static void vmm_wake(int fd) {
        uint64_t one = 1;
        ssize_t rc = write(fd, &one, sizeof one);
        (void)rc;
    }
    static void vmm_drain(int fd) {
        uint64_t value;
        ssize_t rc = read(fd, &value, sizeof value);
        (void)rc;
    }
    static int64_t vmm_now_ms(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
    }
    static void vmm_ring_copy(uint8_t *to, const uint8_t *ring, uint64_t at, size_t n,
                              size_t size) {
        size_t start = at & (size - 1);
        size_t first = size - start < n ? size - start : n;
        memcpy(to, ring + start, first);
        memcpy(to + first, ring, n - first);
    }
    static void vmm_ring_store(uint8_t *ring, const uint8_t *from, uint64_t at, size_t n,
                               size_t size) {
        size_t start = at & (size - 1);
        size_t first = size - start < n ? size - start : n;
        memcpy(ring + start, from, first);
        memcpy(ring, from + first, n - first);
    }
    #define vmm_stop_load(p) __atomic_load_n(p, __ATOMIC_SEQ_CST)
    #define vmm_stop_store(p, v) __atomic_store_n(p, v, __ATOMIC_SEQ_CST)
    """
    void vmm_wake(int fd) nogil
    void vmm_drain(int fd) nogil
    int64_t vmm_now_ms() nogil
    void vmm_ring_copy(uint8_t *to, const uint8_t *ring, uint64_t at, size_t n, size_t size) nogil
    void vmm_ring_store(uint8_t *ring, const uint8_t *data, uint64_t at, size_t n,
                        size_t size) nogil
    int vmm_stop_load(int *p) nogil
    void vmm_stop_store(int *p, int v) nogil
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout) nogil
    short POLLIN, POLLOUT
    int accept4(int fd, void *address, void *length, int flags) nogil
    int SOCK_CLOEXEC, SOCK_NONBLOCK

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *lock, void *attributes)
    int pthread_mutex_lock(pthread_mutex_t *lock)
    int pthread_mutex_unlock(pthread_mutex_t *lock)


cdef inline int rested(int fd, int64_t until, int64_t now, int *timeout) noexcept nogil:
    # `fd` to poll, or -1 while it rests; then `timeout` ends with the rest.
    cdef int left
    if fd < 0 or until <= now:
        return fd
    left = <int>(until - now)
    if timeout[0] < 0 or timeout[0] > left:
        timeout[0] = left
    return -1
