"""The virtio registers that a driver uses for each request, without the GIL."""

from libc.stdint cimport uint16_t

from vmm._native.kvm.bus cimport PythonTarget

cdef class VirtioRegisters(PythonTarget):
    cdef public uint16_t selected     # queue_select: which queue the queue registers show
    cdef readonly uint16_t queues
