"""COM1: a 16550A whose transmitter is always empty.

Source: National Semiconductor PC16550D data sheet; what Linux's 8250 driver probes for.
Interrupts are edges: one is raised at each event that leaves an enabled cause pending.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from vmm._native.kvm.bus cimport OUTCOME_CONTINUE, BusTarget
from vmm._native.console.byteport cimport BytePort
from vmm._native.console.portio cimport (
    pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock, vmm_wake,
)
from vmm._native.console.portinput cimport input_mark, pending_input, set_pending_input

cdef enum:
    DATA = 0
    IER = 1
    IIR = 2                      # FCR when written
    LCR = 3
    MCR = 4
    LSR = 5
    MSR = 6
    SCR = 7
    IER_RECEIVE = 1
    IER_TRANSMIT = 2
    IER_MASK = 0x0F
    IIR_NONE = 1
    IIR_TRANSMIT = 2
    IIR_RECEIVE = 4
    IIR_FIFOS = 0xC0
    LCR_DLAB = 0x80
    LCR_8N1 = 3
    MCR_OUT2 = 8
    MCR_LOOP = 0x10
    MCR_MASK = 0x1F
    LSR_DATA = 1
    LSR_EMPTY = 0x60
    MSR_CONNECTED = 0xB0
    LOOP_SIZE = 64
    DIVISOR_9600 = 12


cdef int uart_access(void *opaque, uint64_t offset, uint8_t *data, uint32_t size,
                     int is_write) noexcept nogil:
    # SAFETY: the bus keeps the object alive while it is attached.
    if size == 1 and offset <= SCR:      # registers are bytes; anything else decodes to nothing
        (<Uart>opaque).access(<int>offset, data, is_write)
    return OUTCOME_CONTINUE


cdef void uart_input(void *opaque) noexcept nogil:
    # SAFETY: close() takes the listener back before the object goes.
    (<Uart>opaque).input_arrived()


cdef class Uart(BusTarget):
    """The registers over ``port``; interrupts are written to the eventfd ``irq_fd`` (borrowed).

    ``lock`` holds all registers, for vCPUs and for the port's thread; the port's own come under it.
    """

    def __cinit__(self, BytePort port not None, int irq_fd):
        self.port = port
        self.irq_fd = irq_fd
        self.handler = uart_access
        self.lcr = LCR_8N1
        self.mcr = MCR_OUT2
        self.dll = DIVISOR_9600
        self.lock = malloc(sizeof(pthread_mutex_t))
        if self.lock == NULL:
            raise MemoryError
        pthread_mutex_init(<pthread_mutex_t *>self.lock, NULL)
        port.set_listener(uart_input, <void *>self)

    def __dealloc__(self):
        self.close()
        free(self.lock)

    def close(self):
        """Leave the port; the host's bytes stay in it for the next machine. Idempotent."""
        cdef BytePort port = self.port
        if port is not None:
            with nogil:
                port.set_listener(NULL, NULL)
            self.port = None

    def raised(self):
        """Whether the line was raised since the last call: KVM may have it under way still."""
        cdef bint found = self.irq_raised
        self.irq_raised = False
        return found

    def mark(self):
        """Another value after input came or went."""
        return input_mark(self.port) if self.port is not None else 0

    def state(self):
        """The registers, and the input that waits."""
        return {
            "version": 1, "ier": self.ier, "lcr": self.lcr, "mcr": self.mcr, "scr": self.scr,
            "dll": self.dll, "dlm": self.dlm, "thre_pending": self.thre_pending,
            "loop": bytes(self.loop_data[:self.loop_count]), "input": pending_input(self.port),
        }

    def set_state(self, state):
        """A state() again, whose values have been checked (devices/native_state.py).

        The line is not raised: what it was is the interrupt controller's state.
        """
        cdef bytes loop = state["loop"]
        if len(loop) > LOOP_SIZE:
            raise ValueError(f"{len(loop)} bytes in a loop of {LOOP_SIZE}")
        set_pending_input(self.port, state["input"])
        pthread_mutex_lock(<pthread_mutex_t *>self.lock)
        try:
            self.ier, self.lcr, self.mcr = state["ier"], state["lcr"], state["mcr"]
            self.scr, self.dll, self.dlm = state["scr"], state["dll"], state["dlm"]
            self.thre_pending = state["thre_pending"]
            self.loop_count = len(loop)
            memcpy(self.loop_data, <const char *>loop, len(loop))
        finally:
            pthread_mutex_unlock(<pthread_mutex_t *>self.lock)

    cdef void access(self, int offset, uint8_t *data, int is_write) noexcept nogil:
        pthread_mutex_lock(<pthread_mutex_t *>self.lock)
        if is_write:
            self.write_register(offset, data[0])
        else:
            data[0] = self.read_register(offset)
        pthread_mutex_unlock(<pthread_mutex_t *>self.lock)

    cdef void input_arrived(self) noexcept nogil:
        pthread_mutex_lock(<pthread_mutex_t *>self.lock)
        if self.ier & IER_RECEIVE and not self.mcr & MCR_LOOP:
            self.raise_line()
        pthread_mutex_unlock(<pthread_mutex_t *>self.lock)

    cdef uint8_t read_register(self, int offset) noexcept nogil:
        cdef uint8_t value
        if offset == DATA:
            return self.dll if self.lcr & LCR_DLAB else self.receive()
        if offset == IER:
            return self.dlm if self.lcr & LCR_DLAB else self.ier
        if offset == IIR:
            value = self.identify()
            if value == IIR_TRANSMIT:
                self.thre_pending = False    # reading IIR acknowledges this cause only
            return value | IIR_FIFOS
        if offset == LCR:
            return self.lcr
        if offset == MCR:
            return self.mcr
        if offset == LSR:
            return LSR_EMPTY | (LSR_DATA if self.receive_ready() else 0)
        if offset == MSR:
            if self.mcr & MCR_LOOP:
                # RTS to CTS, DTR to DSR, OUT1 to RI, OUT2 to DCD.
                return ((self.mcr & 2) << 3 | (self.mcr & 1) << 5 | (self.mcr & 4) << 4
                        | (self.mcr & 8) << 4)
            return MSR_CONNECTED
        return self.scr

    cdef void write_register(self, int offset, uint8_t value) noexcept nogil:
        cdef uint8_t rising
        if offset == DATA:
            if self.lcr & LCR_DLAB:
                self.dll = value
            else:
                self.transmit(value)
        elif offset == IER:
            if self.lcr & LCR_DLAB:
                self.dlm = value
                return
            rising = value & ~self.ier
            self.ier = value & IER_MASK
            if rising & IER_TRANSMIT:
                self.thre_pending = True     # enabling it with an empty transmitter interrupts
            if rising:
                self.raise_if_pending()
        elif offset == LCR:
            self.lcr = value
        elif offset == MCR:
            self.mcr = value & MCR_MASK
            if not self.mcr & MCR_LOOP:
                self.loop_count = 0
        elif offset == SCR:
            self.scr = value

    cdef void transmit(self, uint8_t value) noexcept nogil:
        if self.mcr & MCR_LOOP:
            if self.loop_count < LOOP_SIZE:
                self.loop_data[self.loop_count] = value
                self.loop_count += 1
        else:
            self.port.put(&value, 1)
        self.thre_pending = True
        if self.ier:
            self.raise_if_pending()

    cdef uint8_t receive(self) noexcept nogil:
        cdef uint8_t value = 0
        cdef int i
        if self.mcr & MCR_LOOP:
            if self.loop_count:
                value = self.loop_data[0]
                self.loop_count -= 1
                for i in range(self.loop_count):
                    self.loop_data[i] = self.loop_data[i + 1]
        else:
            self.port.take(&value, 1)
        if self.ier & IER_RECEIVE and self.receive_ready():
            self.raise_line()
        return value

    cdef bint receive_ready(self) noexcept nogil:
        if self.mcr & MCR_LOOP:
            return self.loop_count > 0
        return self.port.has_input()

    cdef uint8_t identify(self) noexcept nogil:
        if self.ier & IER_RECEIVE and self.receive_ready():
            return IIR_RECEIVE
        if self.ier & IER_TRANSMIT and self.thre_pending:
            return IIR_TRANSMIT
        return IIR_NONE

    cdef void raise_line(self) noexcept nogil:
        self.irq_raised = True
        vmm_wake(self.irq_fd)

    cdef void raise_if_pending(self) noexcept nogil:
        if self.identify() != IIR_NONE:
            self.raise_line()
