"""virtio-console: bytes between two queues and a byte port (virtio 1.2, 5.3.6)."""

from vmm._native.console.byteport cimport BytePort
from vmm._native.virtio.virtqueue cimport Segment, VirtQueue
from vmm._native.virtio.worker cimport Worker

cdef class ConsoleWorker(Worker):
    cdef BytePort port
    cdef VirtQueue receive
    cdef VirtQueue transmit
    cdef int receive_kick, transmit_kick
    cdef int receive_call, transmit_call
    cdef int input_fd            # written by the port when input arrived
    cdef Segment *segments

    cdef bint send(self) noexcept nogil
    cdef bint deliver(self) noexcept nogil
