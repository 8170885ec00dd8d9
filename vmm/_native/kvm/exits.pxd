"""Exits with an access of the guest's: what it was, and what its device makes of it."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from vmm._native.kvm.bus cimport OUTCOME_CONTINUE, OUTCOME_FAULT, Bus
from vmm._native.kvm.coalesced cimport bring_writes
from vmm._native.kvm.tracering cimport ExitRecord
from vmm._native.linux.kvm cimport *

cdef inline int msr_exit(kvm_run *run, ExitRecord *record, Bus msr) noexcept nogil:
    # Only for MSRs that a filter of the VM names, and with nobody behind them #GP.
    cdef uint8_t *data = <uint8_t *>&run.msr.data
    cdef int outcome = OUTCOME_CONTINUE
    record.address = run.msr.index
    record.size = 8
    record.is_write = run.exit_reason == <uint32_t>KVM_EXIT_X86_WRMSR
    run.msr.error = 1
    if msr is not None:
        run.msr.error = 0
        # Eight bytes each, so that neighbours do not overlap on the bus.
        outcome = msr.access(<uint64_t>run.msr.index * 8, data, 8, record.is_write)
        if outcome == OUTCOME_FAULT:
            run.msr.error = 1
            outcome = OUTCOME_CONTINUE
    record.data = run.msr.data
    return outcome

cdef inline int port_exit(kvm_run *run, ExitRecord *record, Bus pio) noexcept nogil:
    # SAFETY: data_offset, size and count come from the kernel and stay inside its mapping.
    cdef uint8_t *data = <uint8_t *>run + run.io.data_offset
    cdef uint32_t size = run.io.size
    cdef uint32_t count = run.io.count
    cdef int is_write = run.io.direction == KVM_EXIT_IO_OUT
    cdef int outcome = OUTCOME_CONTINUE
    cdef int one
    if pio.ring_offset:
        bring_writes(run, pio)
    record.address = run.io.port
    record.size = size
    record.is_write = is_write
    record.data = 0
    while count:
        if not is_write:
            memset(data, 0xff, size)
        one = pio.access(record.address, data, size, is_write)
        if one != OUTCOME_CONTINUE:
            outcome = one
        memcpy(&record.data, data, size)
        data += size
        count -= 1
    return outcome

cdef inline int mmio_exit(kvm_run *run, ExitRecord *record, Bus mmio) noexcept nogil:
    cdef uint32_t size = run.mmio.len if run.mmio.len <= 8 else 8
    record.address = run.mmio.phys_addr
    record.size = size
    record.is_write = run.mmio.is_write
    if not run.mmio.is_write:
        memset(run.mmio.data, 0xff, 8)
    cdef int outcome = mmio.access(run.mmio.phys_addr, run.mmio.data, size,
                                   run.mmio.is_write)
    record.data = 0
    memcpy(&record.data, run.mmio.data, size)
    return outcome
