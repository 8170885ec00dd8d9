"""virtio-rng: fills the driver's buffers from getrandom(2) (virtio 1.2, 5.4)."""

from libc.stdint cimport uint16_t, uint32_t
from libc.stdlib cimport calloc, free

from vmm._native.host.confine cimport KIND_RNG
from vmm._native.virtio.virtqueue cimport Segment, VirtQueue
from vmm._native.virtio.worker cimport Worker, drain_fd, signal_fd

cdef extern from "<sys/random.h>" nogil:
    ssize_t getrandom(void *buffer, size_t length, unsigned int flags)

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout)
    short POLLIN

cdef enum:
    # A guest cannot keep the thread from hearing stop() by one huge request.
    REQUEST_MAX = 64 * 1024


cdef class RngWorker(Worker):
    """Serves the one queue; the eventfds are borrowed."""

    cdef VirtQueue queue
    cdef int kick_fd, call_fd
    cdef Segment *segments

    def __cinit__(self, VirtQueue queue not None, int kick_fd, int call_fd, int config_call_fd):
        self.kind = KIND_RNG
        self.queue = queue
        self.kick_fd = kick_fd
        self.call_fd = call_fd
        self.config_call_fd = config_call_fd
        self.segments = <Segment *>calloc(queue.size, sizeof(Segment))
        if self.segments == NULL:
            raise MemoryError

    def __dealloc__(self):
        self.halt()
        free(self.segments)

    cdef uint32_t fill(self, int count) noexcept nogil:
        cdef uint32_t written = 0
        cdef size_t length
        cdef ssize_t got
        cdef int i
        for i in range(count):
            if self.segments[i].writable and written < REQUEST_MAX:
                length = min(<size_t>self.segments[i].length, <size_t>(REQUEST_MAX - written))
                got = getrandom(self.segments[i].hva, length, 0)
                if got < 0:
                    break
                written += <uint32_t>got
                if <size_t>got < length:
                    break            # used bytes must be contiguous from the first buffer on
        return written

    cdef void loop(self) noexcept nogil:
        cdef pollfd fds[2]
        cdef uint16_t head = 0
        cdef int count
        while not self.stop_asked():
            count = self.queue.pop(&head, self.segments)
            if count < 0:
                self.break_queue(count)
                return
            if count > 0:
                self.queue.add_used(head, self.fill(count - 1))
                if self.queue.needs_interrupt():
                    signal_fd(self.call_fd)
                continue
            if self.queue.enable_notify():
                continue
            fds[0] = pollfd(self.kick_fd, POLLIN, 0)
            fds[1] = pollfd(self.stop_fd, POLLIN, 0)
            poll(fds, 2, -1)
            if fds[0].revents:
                drain_fd(self.kick_fd)
