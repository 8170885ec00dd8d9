"""Console bytes between guest and host, pumped by a native thread without the GIL."""

from libc.errno cimport EAGAIN, EINTR, EIO, errno
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport strlen
from posix.unistd cimport close as c_close, read as c_read

from vmm._native.console.keys cimport KEY_HELP, KEY_STOP, KEY_SWITCH, KeyAction, sort_keys
from vmm._native.console.portio cimport (
    ACCEPT_REST_MS, POLLIN, POLLOUT, READ_REST_MS, SOCK_CLOEXEC, SOCK_NONBLOCK, WRITE_REST_MAX_MS,
    WRITE_REST_MS, accept4, poll, pollfd, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t,
    pthread_mutex_unlock, rested, vmm_drain, vmm_now_ms, vmm_ring_copy, vmm_ring_store,
    vmm_stop_load, vmm_stop_store, vmm_wake,
)
from vmm._native.host.confine cimport KIND_CONSOLE
from vmm._native.host.fd import IoctlError
from vmm._native.host.hostio cimport vmm_caller_allowed, vmm_make_room, vmm_write_now
from vmm._native.host.thread cimport thread_heed_urging, thread_join_urging, thread_start

import os

cdef enum:
    # Pipes take this much at once when poll() says they are writable (pipe(7), PIPE_BUF), so a
    # write of it does not wait where an inherited stdout had to stay in blocking mode.
    CHUNK = 4096
    FLUSH_MS = 1000


cdef void pump_main(void *arg) noexcept nogil:
    # SAFETY: stop() joins this thread before the object goes.
    (<BytePort>arg).pump()


cdef class BytePort:
    """One console's host side. start() and stop() belong to the control thread.

    ``in_fd`` and ``out_fd`` are borrowed (-1: none); ``listen_fd`` is a listening socket whose one
    client, of our user or root, gets the output with the last 64 KiB before it; with neither
    output is discarded.
    """

    def __cinit__(self, int in_fd=-1, int out_fd=-1, int listen_fd=-1):
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
        self.escape_fd = self.notice_fd = self.feeder_fd = -1
        self.discard = out_fd < 0 and listen_fd < 0
        self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def set_keys(self, int escape_fd, bytes help_text, int notice_fd=-1):
        """Before start(): Ctrl-A and a key are for us. ``escape_fd`` is an eventfd for Ctrl-A x.

        ``help_text`` is what Ctrl-A h shows, on ``notice_fd`` or else among the guest's output.
        """
        self.escape_fd = escape_fd
        self.notice_fd = notice_fd
        self.help_text = help_text
        self.help_start = help_text
        self.keys = True

    def share_input(self, BytePort other not None, bint other_first, bytes here, bytes there):
        """Before start(): Ctrl-A c gives the input to ``other`` and back; the texts tell so.

        This port must be closed after the machine, and ``other`` not be deleted before it.
        """
        self.here_text, self.other_text = here, there
        self.here_start, self.other_start = here, there
        self.switched = other_first
        self.other = other
        other.feeder_fd = self.wake_fd

    def limit_file(self, bytes path, long long limit, int keep):
        """Before start(): ``out_fd`` is the file ``path``, which grows no larger than ``limit``.

        Before it would, it becomes ``path``.1, that one ``path``.2, up to ``keep``; with ``keep``
        0, or where the folder's rights forbid it, the file starts anew.
        """
        self.file_path = path
        self.file_start = path
        self.file_limit = limit
        self.file_keep = keep

    def close(self):
        """stop(), and give the wake-up descriptor back; later bytes are discarded. Idempotent."""
        self.stop()
        self.discard = True
        if self.other is not None:
            self.other.feeder_fd = -1
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
        cdef int rc = thread_start(&self.thread, KIND_CONSOLE, encoded, pump_main, <void *>self)
        if rc:
            raise IoctlError(rc, f"pthread_create for {name}")

    def stop(self):
        """End the pump after it wrote out what is left, for at most a second; idempotent."""
        vmm_stop_store(&self.stopping, 1)
        vmm_wake(self.wake_fd)
        with nogil:
            thread_join_urging(&self.thread)
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

    def host_write(self, bytes data):
        """Input as if the host's user had typed it; returns how many bytes found room."""
        return self.add_input(<const uint8_t *><const char *>data, len(data))

    def tell(self, bytes text):
        """Show a text of ours, NUL-free, where the guest's output is shown."""
        self.add_output(<const uint8_t *><const char *>text, len(text))

    cdef void put(self, const uint8_t *data, size_t length) noexcept nogil:
        self.guest_bytes += length
        self.add_output(data, length)

    cdef void add_output(self, const uint8_t *data, size_t length) noexcept nogil:
        cdef bint was_empty
        cdef uint64_t used
        if self.discard:
            return
        if length > OUTPUT_RING:
            self.dropped += length - OUTPUT_RING
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

    cdef size_t add_input(self, const uint8_t *data, size_t length) noexcept nogil:
        cdef size_t room
        pthread_mutex_lock(<pthread_mutex_t *>self.ring_lock)
        room = self.input_room()
        if length > room:
            length = room
        vmm_ring_store(self.input, data, self.input_head, length, INPUT_QUEUE)
        self.input_head += length
        pthread_mutex_unlock(<pthread_mutex_t *>self.ring_lock)
        self.tell_listener()
        return length

    cdef size_t take(self, uint8_t *data, size_t length) noexcept nogil:
        cdef size_t there
        cdef bint was_full
        pthread_mutex_lock(<pthread_mutex_t *>self.ring_lock)
        there = self.input_head - self.input_tail
        was_full = self.input_room() < 2
        if length > there:
            length = there
        vmm_ring_copy(data, self.input, self.input_tail, length, INPUT_QUEUE)
        self.input_tail += length
        pthread_mutex_unlock(<pthread_mutex_t *>self.ring_lock)
        if was_full and length:          # the pump may read from the host again
            vmm_wake(self.wake_fd if self.feeder_fd < 0 else self.feeder_fd)
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

    cdef size_t target_room(self) noexcept nogil:
        # Bytes that may be read from the host now; one less, as a Ctrl-A may have waited.
        cdef size_t room
        if self.switched:
            return self.other.target_room()
        pthread_mutex_lock(<pthread_mutex_t *>self.ring_lock)
        room = self.input_room()
        pthread_mutex_unlock(<pthread_mutex_t *>self.ring_lock)
        return room - 1 if room else 0

    cdef void pump(self) noexcept nogil:
        cdef pollfd fds[4]
        cdef int out
        cdef int source
        cdef int timeout
        cdef bint waiting
        cdef int64_t now
        cdef int64_t deadline = 0
        thread_heed_urging()
        while True:
            now = vmm_now_ms()
            if vmm_stop_load(&self.stopping) and deadline == 0:
                deadline = now + FLUSH_MS
            out = self.client_fd if self.listen_fd >= 0 else self.out_fd
            pthread_mutex_lock(<pthread_mutex_t *>self.ring_lock)
            waiting = self.output_head != self.output_tail and out >= 0
            pthread_mutex_unlock(<pthread_mutex_t *>self.ring_lock)
            if deadline and (not waiting or now >= deadline):
                return
            source = self.client_fd if self.listen_fd >= 0 else self.in_fd
            if self.target_room() == 0:
                source = -1
            timeout = 50 if deadline else -1
            fds[0] = pollfd(self.wake_fd, POLLIN, 0)
            fds[1] = pollfd(rested(out if waiting else -1, self.write_rest, now, &timeout),
                            POLLOUT, 0)
            fds[2] = pollfd(-1, POLLIN, 0)
            fds[3] = pollfd(-1, POLLIN, 0)
            if not deadline:
                fds[2].fd = rested(source, self.read_rest, now, &timeout)
                fds[3].fd = rested(self.listen_fd, self.accept_rest, now, &timeout)
            if poll(fds, 4, timeout) < 0:
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
        cdef ssize_t rc = -1
        pthread_mutex_lock(<pthread_mutex_t *>self.ring_lock)
        tail = self.output_tail
        length = self.output_head - tail
        if length > CHUNK:
            length = CHUNK
        vmm_ring_copy(chunk, self.output, tail, length, OUTPUT_RING)
        pthread_mutex_unlock(<pthread_mutex_t *>self.ring_lock)
        if not self.file_limit or vmm_make_room(
                fd, self.file_start, length, self.file_limit, self.file_keep) == 0:
            rc = vmm_write_now(fd, chunk, length)
        if rc >= 0:
            self.rest_ms = 0
            self.written(rc, tail)
        elif errno == EAGAIN or errno == EINTR:
            self.rest_ms = min(max(2 * self.rest_ms, <int>WRITE_REST_MS), <int>WRITE_REST_MAX_MS)
            self.write_rest = vmm_now_ms() + self.rest_ms
        elif self.listen_fd >= 0:
            self.drop_client()
        else:
            # Disk full or reader gone: what could not be written is lost, the guest goes on.
            self.written(length, tail)
            self.dropped += length

    cdef bint read_some(self, int fd) noexcept nogil:
        cdef uint8_t chunk[CHUNK]
        cdef size_t room = self.target_room()
        cdef ssize_t got = c_read(fd, chunk, room if room < CHUNK else CHUNK)
        if got < 0:
            # EIO: a terminal that belongs to another job for now, or a pseudo-terminal that
            # nobody has open.
            self.read_rest = vmm_now_ms() + READ_REST_MS
            return errno == EAGAIN or errno == EINTR or (errno == EIO and self.listen_fd < 0)
        if got == 0:
            return False
        if self.keys:
            self.type_keys(chunk, got)
        else:
            self.to_target(chunk, got)
        return True

    cdef void to_target(self, const uint8_t *data, size_t length) noexcept nogil:
        if self.switched:
            self.other.add_input(data, length)
        else:
            self.add_input(data, length)

    cdef void type_keys(self, const uint8_t *data, size_t length) noexcept nogil:
        cdef uint8_t kept[2 * CHUNK]
        cdef size_t used = 0
        cdef size_t kept_length = 0
        cdef KeyAction action
        while length:
            action = sort_keys(data, length, &self.escaped, kept, &kept_length, &used)
            if kept_length:
                self.to_target(kept, kept_length)
            data += used
            length -= used
            if action == KEY_STOP:
                vmm_wake(self.escape_fd)
            elif action == KEY_HELP:
                self.notice(self.help_start)
            elif action == KEY_SWITCH and self.other is not None:
                self.switched = not self.switched
                self.notice(self.other_start if self.switched else self.here_start)

    cdef void notice(self, const char *text) noexcept nogil:
        if self.notice_fd >= 0:
            vmm_write_now(self.notice_fd, text, strlen(text))
        else:
            self.add_output(<const uint8_t *>text, strlen(text))

    cdef void accept_client(self) noexcept nogil:
        # The newest client has the console; an older one is let go.
        cdef int fd = accept4(self.listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)
        cdef uint64_t history
        if fd < 0:
            # Who calls stays in the queue until there are descriptors again.
            self.accept_rest = vmm_now_ms() + ACCEPT_REST_MS
            return
        if not vmm_caller_allowed(fd):
            self.refused += 1
            c_close(fd)
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
