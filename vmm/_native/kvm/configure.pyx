"""What every vCPU gets before it runs, set for many of them at once.

KVM takes 50 us to set one vCPU's CPUID and MSRs, and those of different vCPUs side by side.
Source: Documentation/virt/kvm/api.rst, 4.20 (KVM_SET_MSRS), 4.69 (KVM_SET_CPUID2).
"""

from libc.errno cimport errno
from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from vmm._native.host.confine cimport KIND_NONE
from vmm._native.host.fd import IoctlError
from vmm._native.host.thread cimport Thread, thread_join, thread_start
from vmm._native.kvm.vcpu cimport VcpuFd, checked_cpuid
from vmm._native.linux.kvm cimport *

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)

cdef extern from *:
    """
    static int vmm_take(int *next) { return __atomic_fetch_add(next, 1, __ATOMIC_RELAXED); }
    """
    int vmm_take(int *next) nogil

cdef enum:
    MSRS_MAX = 16
    HELPERS_MAX = 15
    VCPUS_A_HELPER = 8           # fewer are done before a thread has begun

# A struct kvm_msrs with its entries.
cdef struct Msrs:
    uint32_t nmsrs
    uint32_t pad
    kvm_msr_entry entries[MSRS_MAX]

# A vCPU, and what KVM said: errno of KVM_SET_CPUID2, of KVM_SET_MSRS, and the MSRs taken.
cdef struct One:
    int fd
    const char *cpuid
    int refused
    int failed
    int taken

cdef struct Work:
    int next                     # taken by whoever has time
    int count
    One *all
    Msrs msrs


def configure(list vcpus, list tables, pairs, int helpers):
    """Set each vCPU's CPUID, then its MSRs, which depend on it; by up to ``helpers`` more threads.

    ``vcpus`` are VcpuFds, ``tables`` as many packed kvm_cpuid2, ``pairs`` (index, value) of at most
    16 MSRs. Returns how many of these KVM took before it met one that it refuses, of each vCPU.
    IoctlError of the first vCPU that failed. Control thread; no vCPU runs.
    """
    cdef Work work
    cdef int i
    cdef VcpuFd vcpu
    if len(pairs) > MSRS_MAX:
        raise ValueError(f"{len(pairs)} MSRs in one call: at most {MSRS_MAX}")
    memset(&work, 0, sizeof(work))
    work.msrs.nmsrs = len(pairs)
    for i, (index, value) in enumerate(pairs):
        work.msrs.entries[i].index = index
        work.msrs.entries[i].data = value
    work.count = len(vcpus)
    work.all = <One *>calloc(work.count, sizeof(One))
    if work.all == NULL:
        raise MemoryError
    try:
        # SAFETY: the lists hold each table and descriptor until all threads have ended.
        for i, (vcpu, table) in enumerate(zip(vcpus, tables, strict=True)):
            work.all[i].fd = vcpu.fd
            work.all[i].cpuid = checked_cpuid(table)
        with nogil:
            work_together(&work, helpers)
        return [taken(&work.all[i]) for i in range(work.count)]
    finally:
        free(work.all)


cdef void work_together(Work *work, int helpers) noexcept nogil:
    cdef Thread threads[HELPERS_MAX]
    cdef int _, i, started = 0
    for _ in range(min(helpers, HELPERS_MAX, work.count // VCPUS_A_HELPER)):
        # One that cannot begin leaves its part to the others.
        if thread_start(&threads[started], KIND_NONE, b"configure", work_off, work) == 0:
            started += 1
    work_off(work)
    for i in range(started):
        thread_join(&threads[i])


cdef void work_off(void *arg) noexcept nogil:
    cdef Work *work = <Work *>arg
    cdef int at = vmm_take(&work.next)
    while at < work.count:
        configure_one(&work.all[at], &work.msrs)
        at = vmm_take(&work.next)


cdef void configure_one(One *one, Msrs *msrs) noexcept nogil:
    if ioctl(one.fd, KVM_SET_CPUID2, one.cpuid) < 0:
        one.refused = errno
        return
    one.taken = ioctl(one.fd, KVM_SET_MSRS, msrs)
    if one.taken < 0:
        one.failed = errno


cdef int taken(One *one) except -1:
    if one.refused:
        raise IoctlError(one.refused, "KVM_SET_CPUID2")
    if one.failed:
        raise IoctlError(one.failed, "KVM_SET_MSRS")
    return one.taken
