"""The thread of a virtio console: guest output to the port, host input to the guest."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.stdlib cimport calloc, free
from posix.unistd cimport close as c_close

from vmm._native.console.byteport cimport BytePort
from vmm._native.host.confine cimport KIND_CONSOLE
from vmm._native.virtio.virtqueue cimport Segment
from vmm._native.virtio.worker cimport Worker, drain_fd, signal_fd

import os

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout)
    short POLLIN


cdef void console_input(void *opaque) noexcept nogil:
    # SAFETY: stop() takes the listener back before the object goes.
    signal_fd((<ConsoleWorker>opaque).input_fd)


cdef class ConsoleWorker(Worker):
    """Serves both queues of port 0; either may be None when the driver left it out.

    ``receive`` and ``transmit`` are (queue, kick_fd, call_fd), the eventfds borrowed.
    """

    def __cinit__(self, BytePort port not None, receive, transmit, int config_call_fd):
        self.kind = KIND_CONSOLE
        self.input_fd = -1
        self.port = port
        self.receive_kick = self.transmit_kick = -1
        cdef int size = 1
        if receive is not None:
            self.receive, self.receive_kick, self.receive_call = receive
            size = max(size, self.receive.size)
        if transmit is not None:
            self.transmit, self.transmit_kick, self.transmit_call = transmit
            size = max(size, self.transmit.size)
        self.config_call_fd = config_call_fd
        self.segments = <Segment *>calloc(size, sizeof(Segment))
        if self.segments == NULL:
            raise MemoryError
        self.input_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def __dealloc__(self):
        self.stop()
        if self.input_fd >= 0:
            c_close(self.input_fd)
        free(self.segments)

    def start(self, str name):
        """Start serving; the port's input goes to this console from now on. Once, before stop()."""
        cdef BytePort port = self.port
        if port is None:
            raise ValueError(f"{name}: a console's worker that was stopped is not started again")
        if self.receive is not None:
            with nogil:
                port.set_listener(console_input, <void *>self)
        Worker.start(self, name)

    def stop(self):
        """End the thread; input that nobody took stays in the port. Idempotent."""
        cdef BytePort port = self.port
        if port is not None and self.receive is not None:
            with nogil:
                port.set_listener(NULL, NULL)
        self.halt()
        self.port = None

    cdef bint send(self) noexcept nogil:
        # Guest to host: everything that is readable goes out. False when the ring is broken.
        cdef uint16_t head = 0
        cdef int count
        cdef int i
        while not self.stop_asked():
            count = self.transmit.pop(&head, self.segments)
            if count < 0:
                self.break_queue(count)
                return False
            if count == 0:
                if self.transmit.enable_notify():
                    continue
                break
            for i in range(count - 1):
                if not self.segments[i].writable:
                    self.port.put(<uint8_t *>self.segments[i].hva, self.segments[i].length)
            self.transmit.add_used(head, 0)
        if self.transmit.needs_interrupt():
            signal_fd(self.transmit_call)
        return True

    cdef bint deliver(self) noexcept nogil:
        # Host to guest: fills the driver's buffers while there is input.
        cdef uint16_t head = 0
        cdef int count
        cdef int i
        cdef uint32_t written
        while self.port.has_input() and not self.stop_asked():
            count = self.receive.pop(&head, self.segments)
            if count < 0:
                self.break_queue(count)
                return False
            if count == 0:
                if self.receive.enable_notify():
                    continue
                break
            written = 0
            for i in range(count - 1):
                if self.segments[i].writable:
                    written += <uint32_t>self.port.take(
                        <uint8_t *>self.segments[i].hva, self.segments[i].length)
            self.receive.add_used(head, written)
        if self.receive.needs_interrupt():
            signal_fd(self.receive_call)
        return True

    cdef void loop(self) noexcept nogil:
        cdef pollfd fds[4]
        cdef bint has_receive = self.receive_kick >= 0
        cdef bint has_transmit = self.transmit_kick >= 0
        if has_receive:
            self.receive.disable_notify()
        while not self.stop_asked():
            if has_transmit and not self.send():
                return
            if has_receive and not self.deliver():
                return
            fds[0] = pollfd(self.transmit_kick, POLLIN, 0)
            fds[1] = pollfd(self.receive_kick, POLLIN, 0)
            fds[2] = pollfd(self.input_fd, POLLIN, 0)
            fds[3] = pollfd(self.stop_fd, POLLIN, 0)
            poll(fds, 4, -1)
            if fds[0].revents:
                drain_fd(self.transmit_kick)
            if fds[1].revents:
                drain_fd(self.receive_kick)
            if fds[2].revents:
                drain_fd(self.input_fd)
