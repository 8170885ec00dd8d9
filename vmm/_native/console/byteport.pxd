"""The meeting point of a guest's console device and the host: bytes both ways, nobody waits.

Output goes into a ring that a pump thread writes to the host; when the host does not read, the
oldest bytes are dropped and counted. Input goes into a queue that the device drains; while it is
full the pump does not read from the host.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t

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
    cdef readonly uint64_t refused       # callers of the socket who are neither our user nor root
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
    # Monotonic ms before which a descriptor that could not do what poll() promised is left alone.
    cdef int64_t read_rest
    cdef int64_t write_rest
    cdef int64_t accept_rest
    cdef int rest_ms
    # Keys of a terminal's user; only the pump reads and writes these once it runs.
    cdef bint keys
    cdef bint escaped
    cdef int escape_fd
    cdef int notice_fd           # where answers to keys go; -1: between the guest's words
    cdef bytes help_text
    cdef const char *help_start
    # The second console of the terminal: it has the input while `switched`.
    cdef BytePort other
    cdef int feeder_fd           # of the second console: wakes the pump that reads the terminal
    cdef bint switched
    cdef bytes here_text
    cdef bytes other_text
    cdef const char *here_start
    cdef const char *other_start
    # A file that may not become larger than this; 0: no limit.
    cdef bytes file_path
    cdef const char *file_start
    cdef long long file_limit
    cdef int file_keep
    cdef bint discard
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
    cdef size_t target_room(self) noexcept nogil
    cdef void to_target(self, const uint8_t *data, size_t length) noexcept nogil
    cdef void add_output(self, const uint8_t *data, size_t length) noexcept nogil
    cdef void notice(self, const char *text) noexcept nogil
    cdef size_t add_input(self, const uint8_t *data, size_t length) noexcept nogil
    cdef void written(self, size_t length, uint64_t from_tail) noexcept nogil
    cdef void write_some(self, int fd) noexcept nogil
    cdef bint read_some(self, int fd) noexcept nogil
    cdef void type_keys(self, const uint8_t *data, size_t length) noexcept nogil
    cdef void accept_client(self) noexcept nogil
    cdef void drop_client(self) noexcept nogil
    cdef size_t input_room(self) noexcept nogil
    cdef void tell_listener(self) noexcept nogil
