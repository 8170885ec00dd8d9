# Looking for work for a moment before a thread sleeps, where that pays.
#
# To wake a thread takes a processor some 5 us, and 50 or more where it has gone to sleep itself: as
# long as many a guest needs until its next request. Each try that finds nothing makes the thread
# sleep at once for twice as many waits as before. One that another thread cut short counts more:
# there the processor is needed for something else, perhaps for the guest. An interrupt makes the
# clock jump as well; the kernel's count of preemptions tells them apart, up to what no interrupt
# takes: there the host of a virtual machine needed the processor.

from libc.stdint cimport uint32_t, uint64_t

from vmm._native.host.clock cimport vmm_now_ns

cdef extern from *:
    """
    #include <sys/resource.h>
    #ifndef RUSAGE_THREAD
    #define RUSAGE_THREAD 1
    #endif
    static void vmm_relax(void) { __builtin_ia32_pause(); }
    /* How often another thread has taken the processor from this one (getrusage(2)). */
    static long vmm_preempted(void) {
        struct rusage told;
        return getrusage(RUSAGE_THREAD, &told) ? -1 : told.ru_nivcsw;
    }
    """
    void vmm_relax() nogil
    long vmm_preempted() nogil

cdef enum:
    POLL_NS = 50000
    # Between two looks at the clock, when nobody has taken the processor.
    POLL_GAP_NS = 20000
    POLL_GAP_MAX_NS = 200000
    POLL_REST_MAX = 4096         # waits
    POLL_REST_TAKEN = 256
    # For so long the count of preemptions is not asked again: a system call.
    POLL_COUNT_NS = 1000000

cdef struct Poller:
    uint32_t rest                # waits still to be slept through
    uint32_t last_rest
    uint64_t tries
    uint64_t paid
    uint64_t counted             # when
    long preempted

cdef struct PollRun:
    uint64_t began
    uint64_t seen
    long preempted
    bint taken                   # by another thread

cdef inline bint poll_begin(Poller *poller, PollRun *run) noexcept nogil:
    # Whether this wait is one to look around in.
    if poller.rest:
        poller.rest -= 1
        return False
    poller.tries += 1
    run.began = run.seen = vmm_now_ns()
    run.taken = False
    if run.began - poller.counted > POLL_COUNT_NS:
        poller.counted = run.began
        poller.preempted = vmm_preempted()
    run.preempted = poller.preempted
    return True

cdef inline bint poll_goes_on(PollRun *run) noexcept nogil:
    cdef uint64_t now
    vmm_relax()
    now = vmm_now_ns()
    run.taken = now - run.seen > POLL_GAP_NS and (
        now - run.seen > POLL_GAP_MAX_NS or vmm_preempted() != run.preempted)
    run.seen = now
    return not run.taken and now - run.began < POLL_NS

cdef inline bint poll_end(Poller *poller, PollRun *run, bint found) noexcept nogil:
    # `found`, after what is learnt from it.
    if found and not run.taken:
        poller.paid += 1
        poller.last_rest //= 4
    else:
        poller.last_rest = min(max(poller.last_rest * 2, 1), <uint32_t>POLL_REST_MAX)
        if run.taken:
            poller.last_rest = max(poller.last_rest, <uint32_t>POLL_REST_TAKEN)
        poller.rest = poller.last_rest
    return found
