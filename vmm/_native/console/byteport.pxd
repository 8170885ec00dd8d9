"""The meeting point of a guest's console device and the host: bytes both ways, nobody waits.

Output goes into a ring that a pump thread writes to the host; when the host does not read, the
oldest bytes are dropped and counted. Input goes into a queue that the device drains; while it is
full the pump does not read from the host.
"""

from libc.stdint cimport uint8_t, uint64_t

from vmm._native.host.thread cimport Thread

cdef enum:
    OUTPUT_RING = 256 * 1024     # powers of two
    INPUT_QUEUE = 4096
    HISTORY = 64 * 1024          # replayed to a client that connects late

ctypedef void (*input_listener)(void *opaque) noexcept nogil

cdef class BytePort:
    cdef uint8_t *output
    cdef uint64_t output_head    # bytes ever put
    cdef uint64_t output_tail    # bytes ever written out or dropped
    cdef uint8_t *input
    cdef uint64_t input_head
    cdef uint64_t input_tail
    cdef readonly uint64_t dropped
    cdef readonly uint64_t guest_bytes   # bytes the guest wrote, discarded ones too
    cdef void *ring_lock         # pthread_mutex_t each
    cdef void *listener_lock
    cdef input_listener listener
    cdef void *listener_opaque
    cdef Thread thread
    cdef int wake_fd
    cdef int in_fd
    cdef int out_fd
    cdef int listen_fd
    cdef int client_fd
    cdef int escape_fd
    cdef bint discard
    cdef bint escaped
    cdef int stopping

    # From the guest; any thread, never blocks.
    cdef void put(self, const uint8_t *data, size_t length) noexcept nogil
    # For the guest: up to `length` bytes of input, 0 when there is none.
    cdef size_t take(self, uint8_t *data, size_t length) noexcept nogil
    cdef bint has_input(self) noexcept nogil
    # Called on the pump thread when input arrived. NULL takes it back; when set_listener returns,
    # the old listener is not running any more.
    cdef void set_listener(self, input_listener listener, void *opaque) noexcept nogil

    cdef void pump(self) noexcept nogil
    cdef size_t pending(self, uint8_t *chunk, size_t length) noexcept nogil
    cdef void written(self, size_t length, uint64_t from_tail) noexcept nogil
    cdef void write_some(self, int fd) noexcept nogil
    cdef bint read_some(self, int fd) noexcept nogil
    cdef void accept_client(self) noexcept nogil
    cdef void drop_client(self) noexcept nogil
    cdef size_t filter_escape(self, uint8_t *data, size_t length) noexcept nogil
    cdef size_t input_room(self) noexcept nogil
    cdef void tell_listener(self) noexcept nogil
