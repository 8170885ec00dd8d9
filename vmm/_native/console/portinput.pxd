"""The host's input that waits in a byte port, as a value."""

from libc.stdint cimport uint64_t

from vmm._native.console.byteport cimport BytePort

# Grows with each byte that came or went.
cpdef uint64_t input_mark(BytePort port) except? 0
cpdef bytes pending_input(BytePort port)
# In place of what waits there; the listener is not told. ValueError when it has no room.
cpdef int set_pending_input(BytePort port, bytes data) except -1
