"""Console bytes between guest and host, pumped by a native thread without the GIL."""

from libc.errno cimport EAGAIN, EINTR, EIO, errno
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from posix.unistd cimport close as c_close, read as c_read, write as c_write

from vmm._native.host.fd import IoctlError
from vmm._native.host.thread cimport thread_join, thread_start

import os

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *lock, void *attributes)
    int pthread_mutex_lock(pthread_mutex_t *lock)
    int pthread_mutex_unlock(pthread_mutex_t *lock)

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
    ctypedef long long int64_t
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
    short POLLIN, POLLOUT, POLLERR, POLLHUP, POLLNVAL
    int accept4(int fd, void *address, void *length, int flags) nogil
    int SOCK_CLOEXEC, SOCK_NONBLOCK, MSG_NOSIGNAL, MSG_DONTWAIT
    ssize_t send(int fd, const void *data, size_t length, int flags) nogil

cdef enum:
    # Pipes take this much at once when poll() says they are writable (pipe(7), PIPE_BUF), so a
    # write of it never blocks, although an inherited stdout must stay in blocking mode.
    CHUNK = 4096
    FLUSH_MS = 1000
    ESCAPE_KEY = 1               # Ctrl-A
    STOP_KEY = 120               # x


cdef void pump_main(void *arg) noexcept nogil:
    # SAFETY: stop() joins this thread before the object goes.
    (<BytePort>arg).pump()


cdef class BytePort:
    """One console's host side. start() and stop() belong to the control thread.

    ``in_fd`` and ``out_fd`` are borrowed (-1: none); ``listen_fd`` is a listening socket whose one
    client gets the output with the last 64 KiB before it; with neither output is discarded.
    ``escape_fd``: an eventfd written when the user types Ctrl-A x.
    """

    def __cinit__(self, int in_fd=-1, int out_fd=-1, int listen_fd=-1, int escape_fd=-1):
        self.wake_fd = -1
        self.output = <uint8_t *>malloc(OUTPUT_RING)
        self.input = <uint8_t *>malloc(INPUT_QUEUE)
        self.ring_lock = malloc(sizeof(pthread_mutex_t))
        self.listener_lock = malloc(sizeof(pthread_mutex_t))
        if not (self.output and self.input and self.ring_lock and self.listener_lock):
            raise MemoryError
        pthread_mutex_init(<pthread_mutex_t *>self.ring_lock, NULL)
        pthread_mutex_init(<pthread_mutex_t *>self.listener_lock, NULL)
        self.in_fd = in_fd
        self.out_fd = out_fd
        self.listen_fd = listen_fd
        self.client_fd = -1
        self.escape_fd = escape_fd
        self.discard = out_fd < 0 and listen_fd < 0
        self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def close(self):
        """stop(), and give the wake-up descriptor back; later bytes are discarded. Idempotent."""
        self.stop()
        self.discard = True
        if self.wake_fd >= 0:
            c_close(self.wake_fd)
            self.wake_fd = -1

    def __dealloc__(self):
        self.close()
        free(self.output)
        free(self.input)
        free(self.ring_lock)
        free(self.listener_lock)

    def start(self, str name):
        """Start the pump; needless (and harmless) for a port that discards."""
        if self.thread.started or (self.discard and self.in_fd < 0):
            return
        vmm_stop_store(&self.stopping, 0)
        cdef bytes encoded = name.encode()
        cdef int rc = thread_start(&self.thread, encoded, pump_main, <void *>self)
        if rc:
            raise IoctlError(rc, f"pthread_create for {name}")

    def stop(self):
        """End the pump after it wrote out what is left, for at most a second; idempotent."""
        vmm_stop_store(&self.stopping, 1)
        vmm_wake(self.wake_fd)
        with nogil:
            thread_join(&self.thread)
            self.drop_client()

    def set_output(self, int fd):
        """Write to ``fd`` from now on (log rotation); the pump is stopped meanwhile."""
        cdef bint running = self.thread.started
        self.stop()
        self.out_fd = fd
        if running:
            self.start("console")

    @property
    def waiting(self):
        """Bytes of the guest's that are still to be written, 0 when nobody takes any."""
        cdef uint64_t there
        pthread_mutex_lock(<pthread_mutex_t *>self.ring_lock)
        there = self.output_head - self.output_tail
        pthread_mutex_unlock(<pthread_mutex_t *>self.ring_lock)
        return there if self.thread.started and self.out_fd >= 0 else 0

    def guest_write(self, data):
        """What a guest's output does; for tests and scripts."""
        cdef bytes text = bytes(data)
        self.put(<const uint8_t *><const char *>text, len(text))

    def guest_read(self, size_t length):
        """What a guest would receive now; for tests and scripts."""
        cdef uint8_t buffer[INPUT_QUEUE]
        cdef size_t got = self.take(buffer, min(length, <size_t>INPUT_QUEUE))
        return bytes(buffer[:got])

    def host_write(self, data):
        """Input as if the host's user had typed it; returns how many bytes found room."""
        cdef bytes text = bytes(data)
        cdef const uint8_t *start = <const uint8_t *><const char *>text
        cdef size_t room
        cdef size_t count = len(text)
        pthread_mutex_lock(<pthread_mutex_t *>self.ring_lock)
        room = self.input_room()
        count = min(count, room)
        if count:
            vmm_ring_store(self.input, start, self.input_head, count, INPUT_QUEUE)
            self.input_head += count
        pthread_mutex_unlock(<pthread_mutex_t *>self.ring_lock)
        with nogil:
            self.tell_listener()
        return count

    cdef void put(self, const uint8_t *data, size_t length) noexcept nogil:
        cdef bint was_empty
        cdef uint64_t used
        self.guest_bytes += length
        if self.discard:
            return
        if length > OUTPUT_RING:
            data += length - OUTPUT_RING
            length = OUTPUT_RING
        pthread_mutex_lock(<pthread_mutex_t *>self.ring_lock)
        was_empty = self.output_head == self.output_tail
        vmm_ring_store(self.output, data, self.output_head, length, OUTPUT_RING)
        self.output_head += length
        used = self.output_head - self.output_tail
        if used > OUTPUT_RING:
            self.dropped += used - OUTPUT_RING
            self.output_tail += used - OUTPUT_RING
        pthread_mutex_unlock(<pthread_mutex_t *>self.ring_lock)
        if was_empty:
            vmm_wake(self.wake_fd)

    cdef size_t take(self, uint8_t *data, size_t length) noexcept nogil:
        cdef size_t there
        cdef bint was_full
        pthread_mutex_lock(<pthread_mutex_t *>self.ring_lock)
        there = self.input_head - self.input_tail
        was_full = self.input_room() == 0
        if length > there:
            length = there
        vmm_ring_copy(data, self.input, self.input_tail, length, INPUT_QUEUE)
        self.input_tail += length
        pthread_mutex_unlock(<pthread_mutex_t *>self.ring_lock)
        if was_full and length:
            vmm_wake(self.wake_fd)       # the pump may read from the host again
        return length

    cdef bint has_input(self) noexcept nogil:
        cdef bint found
        pthread_mutex_lock(<pthread_mutex_t *>self.ring_lock)
        found = self.input_head != self.input_tail
        pthread_mutex_unlock(<pthread_mutex_t *>self.ring_lock)
        return found

    cdef size_t input_room(self) noexcept nogil:
        return INPUT_QUEUE - (self.input_head - self.input_tail)

    cdef void set_listener(self, input_listener listener, void *opaque) noexcept nogil:
        pthread_mutex_lock(<pthread_mutex_t *>self.listener_lock)
        self.listener = listener
        self.listener_opaque = opaque
        pthread_mutex_unlock(<pthread_mutex_t *>self.listener_lock)

    cdef void tell_listener(self) noexcept nogil:
        pthread_mutex_lock(<pthread_mutex_t *>self.listener_lock)
        if self.listener != NULL:
            self.listener(self.listener_opaque)
        pthread_mutex_unlock(<pthread_mutex_t *>self.listener_lock)

    cdef void pump(self) noexcept nogil:
        cdef pollfd fds[4]
        cdef int out
        cdef int source
        cdef bint waiting
        cdef int64_t deadline = 0
        while True:
            if vmm_stop_load(&self.stopping) and deadline == 0:
                deadline = vmm_now_ms() + FLUSH_MS
            out = self.client_fd if self.listen_fd >= 0 else self.out_fd
            pthread_mutex_lock(<pthread_mutex_t *>self.ring_lock)
            waiting = self.output_head != self.output_tail and out >= 0
            source = self.client_fd if self.listen_fd >= 0 else self.in_fd
            if self.input_room() == 0:
                source = -1
            pthread_mutex_unlock(<pthread_mutex_t *>self.ring_lock)
            if deadline and (not waiting or vmm_now_ms() >= deadline):
                return
            fds[0] = pollfd(self.wake_fd, POLLIN, 0)
            fds[1] = pollfd(out if waiting else -1, POLLOUT, 0)
            fds[2] = pollfd(-1 if deadline else source, POLLIN, 0)
            fds[3] = pollfd(-1 if deadline else self.listen_fd, POLLIN, 0)
            if poll(fds, 4, 50 if deadline else -1) < 0:
                continue
            if fds[0].revents:
                vmm_drain(self.wake_fd)
            if fds[1].revents:
                self.write_some(out)
            if fds[2].revents and not self.read_some(source):
                if self.listen_fd >= 0:
                    self.drop_client()
                else:
                    self.in_fd = -1      # end of input: the guest just hears nothing more
            if fds[3].revents:
                self.accept_client()

    cdef size_t pending(self, uint8_t *chunk, size_t length) noexcept nogil:
        cdef size_t there = self.output_head - self.output_tail
        if length > there:
            length = there
        vmm_ring_copy(chunk, self.output, self.output_tail, length, OUTPUT_RING)
        return length

    cdef void written(self, size_t length, uint64_t from_tail) noexcept nogil:
        # put() may have dropped part of what was just written: never step back.
        pthread_mutex_lock(<pthread_mutex_t *>self.ring_lock)
        if from_tail + length > self.output_tail:
            self.output_tail = from_tail + length
        pthread_mutex_unlock(<pthread_mutex_t *>self.ring_lock)

    cdef void write_some(self, int fd) noexcept nogil:
        cdef uint8_t chunk[CHUNK]
        cdef uint64_t tail
        cdef size_t length
        cdef ssize_t rc
        pthread_mutex_lock(<pthread_mutex_t *>self.ring_lock)
        tail = self.output_tail
        length = self.pending(chunk, CHUNK)
        pthread_mutex_unlock(<pthread_mutex_t *>self.ring_lock)
        if self.listen_fd >= 0:
            rc = send(fd, chunk, length, MSG_NOSIGNAL | MSG_DONTWAIT)
        else:
            rc = c_write(fd, chunk, length)
        if rc >= 0:
            self.written(rc, tail)
        elif self.listen_fd >= 0 and errno != EAGAIN and errno != EINTR:
            self.drop_client()
        elif errno != EAGAIN and errno != EINTR:
            # Disk full or reader gone: what could not be written is lost, the guest goes on.
            self.written(length, tail)
            self.dropped += length

    cdef bint read_some(self, int fd) noexcept nogil:
        cdef uint8_t chunk[CHUNK]
        cdef size_t room
        cdef size_t length
        cdef ssize_t got
        pthread_mutex_lock(<pthread_mutex_t *>self.ring_lock)
        room = self.input_room()
        pthread_mutex_unlock(<pthread_mutex_t *>self.ring_lock)
        got = c_read(fd, chunk, room if room < CHUNK else CHUNK)
        if got < 0:
            return errno == EAGAIN or errno == EINTR or (errno == EIO and self.listen_fd < 0)
        if got == 0:
            return False
        length = got
        if self.escape_fd >= 0:
            length = self.filter_escape(chunk, length)
        pthread_mutex_lock(<pthread_mutex_t *>self.ring_lock)
        vmm_ring_store(self.input, chunk, self.input_head, length, INPUT_QUEUE)
        self.input_head += length
        pthread_mutex_unlock(<pthread_mutex_t *>self.ring_lock)
        self.tell_listener()
        return True

    cdef size_t filter_escape(self, uint8_t *data, size_t length) noexcept nogil:
        # Ctrl-A x asks to stop; Ctrl-A Ctrl-A is one Ctrl-A; Ctrl-A and another key is both.
        # An escape pending from the read before never makes the result longer than `length`:
        # it is given up for room then, which only a user typing Ctrl-A and pasting meets.
        cdef size_t kept = 0
        cdef size_t i
        for i in range(length):
            if self.escaped:
                self.escaped = False
                if data[i] == STOP_KEY:
                    vmm_wake(self.escape_fd)
                    continue
            elif data[i] == ESCAPE_KEY:
                self.escaped = True
                continue
            data[kept] = data[i]
            kept += 1
        return kept

    cdef void accept_client(self) noexcept nogil:
        # The newest client has the console; an older one is let go.
        cdef int fd = accept4(self.listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)
        cdef uint64_t history
        if fd < 0:
            return
        self.drop_client()
        self.client_fd = fd
        pthread_mutex_lock(<pthread_mutex_t *>self.ring_lock)
        history = self.output_head if self.output_head < HISTORY else HISTORY
        if self.output_tail > self.output_head - history:
            self.output_tail = self.output_head - history
        pthread_mutex_unlock(<pthread_mutex_t *>self.ring_lock)

    cdef void drop_client(self) noexcept nogil:
        if self.client_fd >= 0:
            c_close(self.client_fd)
            self.client_fd = -1
