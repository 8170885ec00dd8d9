"""The loop around KVM_RUN: one native thread a vCPU, exits dispatched without the GIL."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from vmm._native.kvm.bus cimport Bus
from vmm._native.kvm.tracering cimport ExitRecord, Tracing
from vmm._native.kvm.vcpu cimport VcpuFd
from vmm._native.host.thread cimport Thread

cdef enum:
    EXIT_KINDS = 64              # exit reasons counted one by one; higher ones share the last
    TRAIL = 32                   # exits remembered for a crash report (a power of two)

cdef struct DebugExit:
    uint64_t pc                  # linear, of the instruction that comes next
    uint64_t dr6
    uint64_t dr7
    uint32_t exception           # 1: #DB, 3: #BP

cdef class VcpuLoop:
    cdef readonly VcpuFd vcpu
    cdef Bus pio
    cdef Bus mmio
    cdef public Bus msr          # answers MSRs that the VM's filter names; None: none of them
    cdef Thread thread
    cdef bytes thread_name
    cdef int done_fd
    cdef int tid                 # of the running thread, 0 when there is none
    cdef int stop                # set by kick(): leave the loop at the next chance
    cdef int pause_wanted        # set by pause(), cleared by resume()
    cdef int parked              # the thread is held
    cdef public int stood        # the newest exit wants an answer (OUTCOME_STOP), else 0
    cdef public int late                # what complete() met: the outcome of the next run
    cdef bint here               # run_here(): whoever called it hears of every interruption
    cdef int resume_fd           # eventfd that ends the holding
    cdef readonly int outcome
    cdef readonly int failure    # errno of a failed KVM_RUN
    cdef DebugExit debug         # what the newest KVM_EXIT_DEBUG said
    cdef uint64_t counts[EXIT_KINDS]
    cdef ExitRecord trail[TRAIL]
    cdef uint64_t exits
    cdef Tracing tracing         # one pointer, NULL while exits are not traced
    cdef list rings              # what it may point to, and what it did until just now

    cdef void run_thread(self) noexcept nogil
    cdef void interrupt(self) noexcept nogil
    cdef void finish(self) noexcept
    cdef void park(self) noexcept nogil
    cdef int loop(self) noexcept nogil
    cdef void complete(self) noexcept nogil
    cdef void stand(self) noexcept nogil
    cdef int dispatch(self) noexcept nogil
    cdef int msr_exit(self, ExitRecord *record) noexcept nogil
    cdef int port_exit(self, ExitRecord *record) noexcept nogil
    cdef int mmio_exit(self, ExitRecord *record) noexcept nogil
