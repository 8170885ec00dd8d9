"""A console for scripts: its output is kept up to a limit, its input waits as long as it must."""

from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memmove

from vmm._native.console.byteport cimport INPUT_QUEUE, BytePort
from vmm._native.console.portio cimport (
    pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock, vmm_drain, vmm_now_ms,
    vmm_ring_store, vmm_stop_load, vmm_stop_store, vmm_wake,
)

cdef enum:
    FIRST_ROOM = 4096
    LIMIT = 16 << 20


cdef class KeptPort(BytePort):
    """A BytePort without a host's end. All methods may be called from any thread.

    At most ``limit`` bytes are kept; beyond it the older half is let go, and counted in
    ``dropped``.
    """

    def __cinit__(self):
        self.limit = LIMIT

    def __dealloc__(self):
        free(self.kept)
        free(self.typed)

    def attend(self, VcpuLoop loop):
        """Whom to interrupt when output comes that somebody waits for; None: nobody."""
        self.loop = loop

    def arm(self, bint wanted=True):
        """Output makes ready_fd readable and interrupts the loop, once; or no more.

        Not within the next millisecond: who waits for words looks again after a while anyhow, and
        a guest that writes byte by byte shall not be interrupted for each.
        """
        if not wanted:
            vmm_drain(self.wake_fd)
        self.armed_ms = vmm_now_ms()
        vmm_stop_store(&self.armed, wanted)

    @property
    def ready_fd(self):
        """An eventfd, for poll()."""
        return self.wake_fd

    @property
    def end(self):
        """Bytes ever written by the guest: the position behind the newest."""
        cdef uint64_t found
        pthread_mutex_lock(<pthread_mutex_t *>self.ring_lock)
        found = self.kept_start + self.kept_size
        pthread_mutex_unlock(<pthread_mutex_t *>self.ring_lock)
        return found

    def window(self, uint64_t position=0):
        """(start, bytes): what the guest wrote from ``position`` on, as far as it is kept."""
        cdef bytes found = b""
        cdef uint64_t start
        pthread_mutex_lock(<pthread_mutex_t *>self.ring_lock)
        try:
            start = min(max(position, self.kept_start), self.kept_start + self.kept_size)
            found = self.kept[start - self.kept_start:self.kept_size]
            return start, found
        finally:
            pthread_mutex_unlock(<pthread_mutex_t *>self.ring_lock)

    def type(self, bytes data):
        """Input for the guest, in the order of the calls; what finds no room waits for it."""
        self.append(data)
        self.tell_listener()

    def unfed(self):
        """Input that found no room yet."""
        cdef bytes found
        pthread_mutex_lock(<pthread_mutex_t *>self.ring_lock)
        try:
            found = self.typed[:self.typed_size] if self.typed_size else b""
        finally:
            pthread_mutex_unlock(<pthread_mutex_t *>self.ring_lock)
        return found

    def set_unfed(self, bytes data):
        """Let ``data`` wait in place of unfed(); the guest is not told."""
        pthread_mutex_lock(<pthread_mutex_t *>self.ring_lock)
        self.typed_size = 0
        pthread_mutex_unlock(<pthread_mutex_t *>self.ring_lock)
        self.append(data)

    cdef int append(self, bytes data) except -1:
        cdef size_t length = len(data)
        cdef uint8_t *grown
        pthread_mutex_lock(<pthread_mutex_t *>self.ring_lock)
        grown = <uint8_t *>realloc(self.typed, max(self.typed_size + length, <size_t>1))
        if grown != NULL:
            self.typed = grown
            memcpy(grown + self.typed_size, <const char *>data, length)
            self.typed_size += length
            self.feed()
        pthread_mutex_unlock(<pthread_mutex_t *>self.ring_lock)
        if grown == NULL:
            raise MemoryError
        return 0

    cdef void feed(self) noexcept nogil:
        # With the ring's lock held.
        cdef size_t length = min(self.typed_size, self.input_room())
        vmm_ring_store(self.input, self.typed, self.input_head, length, INPUT_QUEUE)
        self.input_head += length
        self.typed_size -= length
        memmove(self.typed, self.typed + length, self.typed_size)

    cdef size_t take(self, uint8_t *data, size_t length) noexcept nogil:
        cdef size_t got = BytePort.take(self, data, length)
        # The device that takes this asks again as long as there is something: nobody is told.
        pthread_mutex_lock(<pthread_mutex_t *>self.ring_lock)
        if self.typed_size and self.input_room() > INPUT_QUEUE // 2:
            self.feed()
        pthread_mutex_unlock(<pthread_mutex_t *>self.ring_lock)
        return got

    cdef void add_output(self, const uint8_t *data, size_t length) noexcept nogil:
        pthread_mutex_lock(<pthread_mutex_t *>self.ring_lock)
        self.keep(data, length)
        pthread_mutex_unlock(<pthread_mutex_t *>self.ring_lock)
        if vmm_stop_load(&self.armed) and vmm_now_ms() > self.armed_ms + 1:
            vmm_stop_store(&self.armed, 0)
            vmm_wake(self.wake_fd)
            if self.loop is not None:
                self.loop.interrupt()

    cdef void keep(self, const uint8_t *data, size_t length) noexcept nogil:
        cdef size_t gone
        if length > self.limit // 2:
            # The newest of it alone, with nothing of what was there before.
            gone = length - self.limit // 2
            self.dropped += gone + self.kept_size
            self.kept_start += gone + self.kept_size
            self.kept_size = 0
            data += gone
            length -= gone
        if self.kept_size + length > self.limit:
            gone = self.kept_size - self.kept_size // 2
            memmove(self.kept, self.kept + gone, self.kept_size - gone)
            self.kept_size -= gone
            self.kept_start += gone
            self.dropped += gone
        if not self.grow(self.kept_size + length):
            self.kept_start += length
            self.dropped += length
            return
        memcpy(self.kept + self.kept_size, data, length)
        self.kept_size += length

    cdef bint grow(self, size_t size) noexcept nogil:
        cdef size_t room = max(self.kept_room, <size_t>FIRST_ROOM)
        cdef uint8_t *grown
        if size <= self.kept_room:
            return True
        while room < size:
            room *= 2
        grown = <uint8_t *>realloc(self.kept, room)
        if grown == NULL:
            return False
        self.kept = grown
        self.kept_room = room
        return True
