"""A 16550A serial port, handled without the GIL."""

from libc.stdint cimport uint8_t

from vmm._native.kvm.bus cimport BusTarget
from vmm._native.console.byteport cimport BytePort

cdef class Uart(BusTarget):
    cdef BytePort port
    cdef int irq_fd
    cdef void *lock              # pthread_mutex_t
    cdef uint8_t ier, lcr, mcr, scr, dll, dlm
    cdef bint thre_pending       # the transmitter became empty and nobody read IIR since
    cdef uint8_t loop_data[64]
    cdef int loop_count
    cdef bint irq_raised         # the line was raised since raised() was asked

    cdef void access(self, int offset, uint8_t *data, int is_write) noexcept nogil
    cdef void input_arrived(self) noexcept nogil
    cdef uint8_t read_register(self, int offset) noexcept nogil
    cdef void write_register(self, int offset, uint8_t value) noexcept nogil
    cdef uint8_t identify(self) noexcept nogil
    cdef bint receive_ready(self) noexcept nogil
    cdef void raise_line(self) noexcept nogil
    cdef void raise_if_pending(self) noexcept nogil
    cdef uint8_t receive(self) noexcept nogil
    cdef void transmit(self, uint8_t value) noexcept nogil
