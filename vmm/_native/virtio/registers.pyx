"""queue_select and queue_notify_off of virtio's PCI transport (virtio 1.2, 4.1.4.3).

Drivers without interrupts, as firmwares have them, look up the doorbell anew for each request of
512 bytes: through Python that made up most of what a boot from such a disk took.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from vmm._native.kvm.bus cimport OUTCOME_CONTINUE, python_access

cdef enum:
    QUEUE_SELECT = 0x16
    QUEUE_NOTIFY_OFF = 0x1e


cdef int registers_access(void *opaque, uint64_t offset, uint8_t *data, uint32_t size,
                          int is_write) noexcept nogil:
    # SAFETY: the bus keeps the object alive while it is attached; data has `size` bytes. Two vCPUs
    # may race here as they may on real hardware: each value is one aligned 16-bit store or load.
    cdef uint16_t value
    if size == 2 and offset == QUEUE_SELECT:
        if is_write:
            memcpy(&value, data, 2)
            (<VirtioRegisters>opaque).selected = value
        else:
            value = (<VirtioRegisters>opaque).selected
            memcpy(data, &value, 2)
        return OUTCOME_CONTINUE
    if size == 2 and offset == QUEUE_NOTIFY_OFF and not is_write:
        value = (<VirtioRegisters>opaque).selected
        if value >= (<VirtioRegisters>opaque).queues:
            value = 0
        memcpy(data, &value, 2)
        return OUTCOME_CONTINUE
    return python_access(opaque, offset, data, size, is_write)


cdef class VirtioRegisters(PythonTarget):
    """BAR 0 of a virtio function with ``queues`` queues; ``device`` serves all else.

    ``selected`` belongs to both sides: Python reads and writes it with the GIL held.
    """

    def __cinit__(self, device, uint16_t queues):
        self.queues = queues
        self.handler = registers_access
