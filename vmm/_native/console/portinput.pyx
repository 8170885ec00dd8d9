"""Looks at and replaces the input that waits in a byte port; any thread."""

from libc.stdint cimport uint8_t, uint64_t

from vmm._native.console.byteport cimport INPUT_QUEUE, BytePort
from vmm._native.console.portio cimport (
    pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock, vmm_ring_copy, vmm_ring_store,
    vmm_wake,
)


cdef int need(BytePort port) except -1:
    if port is None:
        raise ValueError("the console's device has left its port")
    return 0


cpdef uint64_t input_mark(BytePort port) except? 0:
    """Another number after each byte that came or went."""
    need(port)
    return port.input_head + port.input_tail


cpdef bytes pending_input(BytePort port):
    """What the host typed and the guest has not taken."""
    cdef uint8_t data[INPUT_QUEUE]
    cdef size_t length
    need(port)
    pthread_mutex_lock(<pthread_mutex_t *>port.ring_lock)
    length = port.input_head - port.input_tail
    # SAFETY: at most INPUT_QUEUE bytes are ever between the two.
    vmm_ring_copy(data, port.input, port.input_tail, length, INPUT_QUEUE)
    pthread_mutex_unlock(<pthread_mutex_t *>port.ring_lock)
    # A script's console has more behind the queue.
    more = getattr(port, "unfed", None)
    return bytes(data[:length]) + (b"" if more is None else more())


cpdef int set_pending_input(BytePort port, bytes data) except -1:
    """Let ``data`` wait in place of what waits now."""
    cdef size_t length = min(len(data), <Py_ssize_t>INPUT_QUEUE)
    need(port)
    set_more = getattr(port, "set_unfed", None)
    if set_more is not None:
        set_more(b"")
    elif len(data) > INPUT_QUEUE:
        raise ValueError(f"{len(data)} bytes of input: at most {INPUT_QUEUE} can wait here")
    pthread_mutex_lock(<pthread_mutex_t *>port.ring_lock)
    port.input_tail = port.input_head
    vmm_ring_store(port.input, <const uint8_t *><const char *>data, port.input_head, length,
                   INPUT_QUEUE)
    port.input_head += length
    pthread_mutex_unlock(<pthread_mutex_t *>port.ring_lock)
    # The pump may have stopped reading from the host while the queue was full.
    if set_more is None:
        vmm_wake(port.wake_fd if port.feeder_fd < 0 else port.feeder_fd)
    elif len(data) > INPUT_QUEUE:
        set_more(data[INPUT_QUEUE:])
    return 0
