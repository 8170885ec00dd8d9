"""A ring of exits: one vCPU's thread writes it, one reader empties it, neither waits.

The writer's half is here, inline: VcpuLoop needs no module at run time for it, so that `start`
loads none. The reader's half, with the memory, is TraceRing in tracering.pyx.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t

from cpython.pycapsule cimport PyCapsule_GetPointer

from vmm._native.linux.kvm cimport *

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)

cdef enum:
    # How an exit's rip is had.
    RIP_NONE = 0                 # not at all: reads 0
    RIP_SYNC = 1                 # the kernel leaves it in kvm_run (KVM_CAP_SYNC_REGS)
    RIP_IOCTL = 2                # KVM_GET_REGS after each exit

    RUN_FAILED = 1               # flags: KVM_RUN failed, `data` is the errno

cdef extern from *:
    """
    #include <errno.h>
    #include <stdint.h>
    #include <x86intrin.h>
    /* One cache line, as tracering.pyx and vmm/debug/tracerecord.py name its fields. */
    typedef struct vmm_trace_record {
        uint64_t entry_tsc, exit_tsc, done_tsc;
        uint64_t address, data, rip;
        uint32_t reason, count;
        uint16_t vcpu;
        uint8_t size, is_write;
        uint32_t flags;
    } vmm_trace_record;
    _Static_assert(sizeof(vmm_trace_record) == 64, "a record is one cache line");

    /* head, with what only the writer changes, and tail, which only the reader does, lie in cache
       lines of their own. */
    typedef struct vmm_trace_ring {
        vmm_trace_record *records;
        uint64_t mask;
        uint32_t rip_mode;
        uint16_t vcpu;
        uint8_t apart[64];
        uint64_t head, dropped;
        uint8_t apart_too[64];
        uint64_t tail;
    } vmm_trace_ring;

    static inline void vmm_trace_errno(int code) { errno = code; }
    static inline uint64_t vmm_trace_tsc(void) { return __rdtsc(); }
    static inline uint64_t vmm_trace_acquire(uint64_t *p) {
        return __atomic_load_n(p, __ATOMIC_ACQUIRE);
    }
    static inline void vmm_trace_release(uint64_t *p, uint64_t v) {
        __atomic_store_n(p, v, __ATOMIC_RELEASE);
    }

    /* The writer's: a full ring keeps the older records, and counts what it could not take. */
    static inline void vmm_trace_put(vmm_trace_ring *ring, const vmm_trace_record *record) {
        uint64_t head = ring->head;
        /* Acquire: the reader has copied what it gave back before we write there. */
        if (head - vmm_trace_acquire(&ring->tail) > ring->mask) {
            vmm_trace_release(&ring->dropped, ring->dropped + 1);
            return;
        }
        ring->records[head & ring->mask] = *record;
        /* Release: the record is whole before it can be seen. */
        vmm_trace_release(&ring->head, head + 1);
    }

    #define vmm_trace_now(p) __atomic_load_n(p, __ATOMIC_RELAXED)
    #define vmm_trace_load(p) __atomic_load_n(p, __ATOMIC_SEQ_CST)
    #define vmm_trace_store(p, v) __atomic_store_n(p, v, __ATOMIC_SEQ_CST)
    """
    struct TraceRecord "vmm_trace_record":
        uint64_t entry_tsc       # KVM_RUN was called
        uint64_t exit_tsc        # it returned
        uint64_t done_tsc        # the exit was handled
        uint64_t address         # port, gpa or MSR; the suberror of an internal error
        uint64_t data            # as read or written, up to 8 bytes; the last one of `count`
        uint64_t rip
        uint32_t reason          # KVM_EXIT_*
        uint32_t count           # accesses in this exit: more than one for `rep ins` and `rep outs`
        uint16_t vcpu
        uint8_t size             # bytes of one access
        uint8_t is_write
        uint32_t flags

    struct Ring "vmm_trace_ring":
        TraceRecord *records
        uint64_t mask            # records - 1, a power of two less one
        uint32_t rip_mode
        uint16_t vcpu
        uint64_t head            # records written since the beginning
        uint64_t dropped
        uint64_t tail            # records taken

    void set_errno "vmm_trace_errno"(int code) noexcept nogil
    uint64_t tsc "vmm_trace_tsc"() noexcept nogil
    uint64_t acquire "vmm_trace_acquire"(uint64_t *p) noexcept nogil
    void release "vmm_trace_release"(uint64_t *p, uint64_t v) noexcept nogil
    void ring_put "vmm_trace_put"(Ring *ring, const TraceRecord *record) noexcept nogil
    Ring *ring_now "vmm_trace_now"(Ring **p) noexcept nogil
    Ring *ring_load "vmm_trace_load"(Ring **p) noexcept nogil
    void ring_store "vmm_trace_store"(Ring **p, Ring *v) noexcept nogil

# The capsule's name: what makes a Python object's pointer one to a Ring.
cdef extern from *:
    """
    #define VMM_TRACE_RING "vmm._native.kvm.tracering.Ring"
    """
    const char *RING_NAME "VMM_TRACE_RING"

# What a vCPU remembers of each exit, traced or not.
cdef struct ExitRecord:
    uint64_t address             # port, gpa or MSR; the suberror of an internal error
    uint64_t data                # as read or written, up to 8 bytes
    uint32_t reason
    uint8_t size
    uint8_t is_write

# A vCPU's side. `ring` is what set_trace() wants, NULL for off; `held` is what the vCPU's thread
# may be touching: a ring lives while it is either.
cdef struct Tracing:
    Ring *ring
    Ring *held
    TraceRecord record           # of the exit that is being handled

# KVM_RUN. Untraced it costs a load and a branch more.
cdef inline int run_vcpu(Tracing *tracing, int fd, kvm_run *run) noexcept nogil:
    if ring_now(&tracing.ring) == NULL:
        return ioctl(fd, KVM_RUN, 0)
    return traced_run(tracing, fd, run)

# KVM_RUN with its times. Nothing is recorded when tracing was switched off just now.
cdef inline int traced_run(Tracing *tracing, int fd, kvm_run *run) noexcept nogil:
    cdef Ring *ring = ring_load(&tracing.ring)
    cdef TraceRecord *record = &tracing.record
    cdef uint64_t regs_before = run.kvm_valid_regs
    cdef int rc
    cdef int code
    ring_store(&tracing.held, ring)
    # Looked at again: between the two, set_trace() saw nobody hold it, and may have freed it.
    if ring == NULL or ring_load(&tracing.ring) != ring:
        ring_store(&tracing.held, NULL)
        return ioctl(fd, KVM_RUN, 0)
    if ring.rip_mode == RIP_SYNC:
        run.kvm_valid_regs = regs_before | <uint64_t>KVM_SYNC_X86_REGS
    record.entry_tsc = tsc()
    rc = ioctl(fd, KVM_RUN, 0)
    record.exit_tsc = tsc()
    code = errno
    run.kvm_valid_regs = regs_before
    record.rip = exit_rip(ring.rip_mode, fd, run)
    if rc < 0:
        failed_run(tracing, code)
        set_errno(code)
    return rc

cdef inline uint64_t exit_rip(uint32_t mode, int fd, kvm_run *run) noexcept nogil:
    cdef kvm_regs regs
    if mode == RIP_SYNC:
        return run.s.regs.regs.rip
    if mode == RIP_IOCTL and ioctl(fd, KVM_GET_REGS, &regs) == 0:
        return regs.rip
    return 0

# A signal ended KVM_RUN (a pause, a kick), or the kernel refused to go on.
cdef inline void failed_run(Tracing *tracing, int code) noexcept nogil:
    cdef TraceRecord *record = &tracing.record
    record.reason = KVM_EXIT_INTR
    record.flags = 0
    if code != EINTR and code != EAGAIN:
        record.reason = KVM_EXIT_UNKNOWN
        record.flags = RUN_FAILED
    record.address = 0
    record.data = code
    record.size = 0
    record.is_write = 0
    record.count = 0
    record_handled(tracing)

# The exit was handled, and this is what it was.
cdef inline void trace_exit(Tracing *tracing, kvm_run *run, ExitRecord *seen) noexcept nogil:
    cdef TraceRecord *record = &tracing.record
    if tracing.held == NULL:
        return
    record.reason = seen.reason
    record.flags = 0
    record.address = seen.address
    record.data = seen.data
    record.size = seen.size
    record.is_write = seen.is_write
    record.count = run.io.count if seen.reason == <uint32_t>KVM_EXIT_IO else 1
    record_handled(tracing)

# The record has all but its last time.
cdef inline void record_handled(Tracing *tracing) noexcept nogil:
    cdef Ring *ring = tracing.held
    tracing.record.done_tsc = tsc()
    tracing.record.vcpu = ring.vcpu
    # After set_trace() has taken the ring away nobody expects another record.
    if ring_load(&tracing.ring) == ring:
        ring_put(ring, &tracing.record)
    ring_store(&tracing.held, NULL)

# set_trace() of a vCPU's loop: `rings` are (ring, its address) of those that may be in use.
cdef inline list change_ring(Tracing *tracing, list rings, ring, int vcpu):
    cdef Ring *wanted = NULL
    if ring is not None:
        # SAFETY: the capsule's name says what it points to, and `rings` keeps its owner alive.
        wanted = <Ring *>PyCapsule_GetPointer(ring.take(vcpu), RING_NAME)
        rings = [*rings, (ring, <uintptr_t>wanted)]
    ring_store(&tracing.ring, wanted)
    # One that the vCPU's thread is just writing to goes with a later call.
    in_use = (<uintptr_t>wanted, <uintptr_t>ring_load(&tracing.held))
    return [entry for entry in rings if entry[1] in in_use]
