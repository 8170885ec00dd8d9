"""What may decide, before a vCPU stands still, that it need not: a pointer in VcpuLoop.

Only the form is here, so that VcpuLoop needs no module at run time; PointGate is in pointgate.pyx.
"""

from libc.stdint cimport uint32_t, uint64_t

from cpython.pycapsule cimport PyCapsule_GetPointer

cdef struct DebugExit:
    uint64_t pc                  # linear, of the instruction that comes next
    uint64_t dr6
    uint64_t dr7
    uint32_t exception           # 1: #DB, 3: #BP

cdef struct Gate:
    # The outcome of an exit that wanted to stop the vCPU `fd`, and is complete: OUTCOME_STOP, or
    # OUTCOME_CONTINUE. `address` is its port.
    int (*judge)(void *owner, int fd, uint32_t reason, uint64_t address,
                 const DebugExit *debug) noexcept nogil
    # The vCPU stands still after all: nothing may be half done.
    void (*leave)(void *owner, int fd) noexcept nogil
    void *owner

cdef extern from *:
    """
    #define VMM_GATE "vmm._native.kvm.gate.Gate"
    """
    const char *GATE_NAME "VMM_GATE"

cdef inline void gate_leave(Gate *gate, int fd) noexcept nogil:
    if gate != NULL:
        gate.leave(gate.owner, fd)

# The gate of an owner with gate(), NULL for None; the caller keeps the owner.
cdef inline Gate *gate_of(owner) except? NULL:
    # SAFETY: the capsule's name says what it points to.
    return NULL if owner is None else <Gate *>PyCapsule_GetPointer(owner.gate(), GATE_NAME)
