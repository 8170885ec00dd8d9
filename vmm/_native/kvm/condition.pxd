"""Conditions on a vCPU's registers as small checked programs, evaluated without the GIL."""

from libc.stdint cimport uint8_t, uint64_t

from vmm._native.linux.kvm cimport kvm_regs
from vmm._native.linux.kvm_state cimport kvm_sregs2

cdef enum:
    GENERAL = 18                 # registers of KVM_GET_REGS
    SYSTEM = 25                  # with those of KVM_GET_SREGS
    ADDRESS = 25                 # what an access of the guest's is, for hooks
    VALUE = 26
    SIZE = 27
    REGISTERS = 28

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
    cdef readonly bint wants_registers   # it names one of the vCPU
    cdef uint64_t passed_by      # how often a gate found it false

    cdef int holds(self, const uint64_t *registers) noexcept nogil
    cdef void pass_by(self) noexcept nogil
    cdef int take(self, int number, int code, operand, int *depths) except -1

# What KVM has of the vCPU `fd`, in `registers` as conditions number them; -1 when it refuses. With
# `sregs` NULL system registers are 0: reading them costs several times what the others do.
cdef int read_registers(int fd, kvm_regs *regs, kvm_sregs2 *sregs,
                        uint64_t *registers) noexcept nogil
