"""Configuration accesses that need no Python: nothing there, or a byte that only stands there."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from vmm._native.kvm.bus cimport PythonTarget

cdef enum:
    SLOTS = 32

cdef class ConfigTable:
    cdef const uint8_t *plain[SLOTS]   # configuration space, 4 KiB; NULL: Python is asked
    cdef uint64_t asked[SLOTS]         # of the first 64 dwords, those that Python is asked for
    cdef uint32_t present              # slots with a function
    cdef list kept                     # the bytearrays, which may not change their size

cdef class ConfigTarget(PythonTarget):
    cdef ConfigTable table
    cdef public uint32_t address       # of mechanism 1: the register at 0xcf8
