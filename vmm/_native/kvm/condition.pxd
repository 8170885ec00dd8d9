"""Conditions on a vCPU's registers as small checked programs, evaluated without the GIL."""

from libc.stdint cimport uint8_t, uint64_t

cdef enum:
    GENERAL = 18                 # registers of KVM_GET_REGS
    REGISTERS = 25               # with those of KVM_GET_SREGS

    FALSE = 0                    # what holds() says
    TRUE = 1
    FAILED = -1                  # a division by zero

cdef struct Step:
    uint64_t operand             # a constant, the number of a register, or where a jump goes
    uint8_t code

cdef class Condition:
    cdef Step *steps
    cdef int count
    cdef readonly bint wants_system      # it names one of KVM_GET_SREGS
    cdef uint64_t passed_by      # how often a gate found it false

    cdef int holds(self, const uint64_t *registers) noexcept nogil
    cdef void pass_by(self) noexcept nogil
    cdef int take(self, int number, int code, operand, int *depths) except -1
