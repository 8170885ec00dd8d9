"""The io_uring engine of virtio-blk: one ring a queue, doorbells read through the same ring.

A batch costs one system call: it submits what was popped and waits for completions or the next
doorbell. Source: io_uring(7), liburing.
"""

from libc.errno cimport EAGAIN, EBUSY, EINTR
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free

from vmm._native.disk.blkpump cimport BlkWorker
from vmm._native.disk.cached cimport CacheReads, read_if_cached
from vmm._native.disk.direct cimport misaligned
from vmm._native.disk.iov cimport iovec
from vmm._native.disk.liburing cimport *
from vmm._native.disk.ranges cimport begin_step, by_writing, is_range, range_mode
from vmm._native.disk.request cimport (
    ACTION_DISCARD, ACTION_DONE, ACTION_FLUSH, ACTION_READ, ACTION_WRITE, Request, entries_of,
)
from vmm._native.disk.slots cimport (
    Slots, slot_give_back, slot_next, slot_take, slots_drop, slots_left, slots_make,
)
from vmm._native.disk.syscalls cimport POLLIN, poll, pollfd
from vmm._native.host.fd import IoctlError
from vmm._native.linux.virtio_blk cimport VIRTIO_BLK_S_IOERR
from vmm._native.virtio.polling cimport Poller, PollRun, poll_begin, poll_end, poll_goes_on
from vmm._native.virtio.worker cimport signal_fd

cdef enum:
    # More requests under way come and go in batches, which looking for each would tear apart.
    SHALLOW = 4
    # Of a batch so many are handed over by the first call, and twice as many by each further one:
    # storage begins with them while the rest is read, and a long batch still takes few calls.
    FIRST_TOGETHER = 2
    MOST_TOGETHER = 8
    # Completions of the two eventfds; requests have their index.
    TAG_KICK = 0x100000000
    TAG_STOP = 0x200000000
    TAG_CANCEL = 0x400000000
    TAG_TIMER = 0x800000000
    NS = 1000000000
    # How long a ring that fails is left alone before it is tried again, and how often the end of
    # the thread does so: the kernel has then dropped or done what it was given (30 s).
    RETRY_MS = 10
    RETRIES_MAX = 3000


def supported():
    """True when this kernel lets us have a ring with the operations that a disk needs."""
    return ring_is_there()


cdef class UringBlkWorker(BlkWorker):
    """As BlkWorker, with many requests in flight. Needs blocking eventfds for the doorbell."""

    engine = "io_uring"
    cdef io_uring *ring
    cdef bint ring_ready
    cdef Slots slots
    cdef int in_flight
    cdef int outstanding         # entries made and not completed, but for the wait for stop_fd
    cdef CacheReads cache
    cdef uint64_t kick_value
    cdef bint ring_registered
    cdef bint kick_registered
    cdef bint kick_armed
    cdef bint timer_armed
    cdef bint held               # the next request waits for the timer
    cdef bint worked             # chains or completions since the last wait
    cdef __kernel_timespec timer
    cdef bint stop_armed

    def __init__(self, *args):
        cdef int size = self.queue.size
        self.ring = <io_uring *>calloc(1, sizeof(io_uring))
        free(self.requests)
        self.requests = <Request *>calloc(size, sizeof(Request))
        if not (self.ring and self.requests and slots_make(&self.slots, size)):
            raise MemoryError
        # Room for every request, both eventfds, a timer and two cancellations, so that an entry is
        # always free.
        cdef int rc = vmm_ring_init(size + 5, self.ring)
        if rc < 0:
            raise IoctlError(-rc, "io_uring_setup")
        self.ring_ready = True

    def __dealloc__(self):
        self.halt()
        if self.ring_ready:
            io_uring_queue_exit(self.ring)
        free(self.ring)
        slots_drop(&self.slots)

    cdef void submit_request(self, int slot) noexcept nogil:
        # SAFETY: the ring has an entry for every slot, and each slot has one request at a time.
        cdef Request *request = &self.requests[slot]
        cdef io_uring_sqe *sqe = self.next_sqe()
        cdef int entries = entries_of(request)
        cdef iovec *iov = &request.iov[request.first]
        if request.action == ACTION_READ and entries == 1:
            io_uring_prep_read(sqe, self.fd, iov.iov_base, iov.iov_len, request.offset)
        elif request.action == ACTION_WRITE and entries == 1:
            io_uring_prep_write(sqe, self.fd, iov.iov_base, iov.iov_len, request.offset)
        elif request.action == ACTION_READ:
            io_uring_prep_readv(sqe, self.fd, iov, entries, request.offset)
        elif request.action == ACTION_WRITE:
            io_uring_prep_writev(sqe, self.fd, iov, entries, request.offset)
        elif request.action == ACTION_FLUSH:
            io_uring_prep_fsync(sqe, self.fd, IORING_FSYNC_DATASYNC)
        else:
            begin_step(request, self.block_device)
            if by_writing(request):
                io_uring_prep_writev(sqe, self.fd, request.iov, 1, request.offset)
            else:
                io_uring_prep_fallocate(sqe, self.fd, range_mode(request), request.offset,
                                        request.step)
        io_uring_sqe_set_data64(sqe, slot)
        self.in_flight += 1

    cdef io_uring_sqe *next_sqe(self) noexcept nogil:
        # Never NULL: the ring has an entry for everything that can be under way at once.
        self.outstanding += 1
        return io_uring_get_sqe(self.ring)

    cdef void arm(self) noexcept nogil:
        cdef io_uring_sqe *sqe = self.next_sqe()
        # The first of the ring's own table, where that was possible.
        cdef int file = 0 if self.kick_registered else self.kick_fd
        io_uring_prep_read(sqe, file, &self.kick_value, sizeof(self.kick_value), 0)
        if self.kick_registered:
            io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE)
        io_uring_sqe_set_data64(sqe, TAG_KICK)
        self.kick_armed = True

    cdef void arm_stop(self) noexcept nogil:
        # One that a pause left behind may still be there: the ring outlives the thread.
        cdef io_uring_sqe *sqe = self.next_sqe()
        self.outstanding -= 1            # as long as the thread runs: not to be waited for
        io_uring_prep_poll_add(sqe, self.stop_fd, POLLIN)
        io_uring_sqe_set_data64(sqe, TAG_STOP)
        self.stop_armed = True

    cdef void arm_timer(self, uint64_t ns) noexcept nogil:
        cdef io_uring_sqe *sqe = self.next_sqe()
        self.timer.tv_sec = ns // NS
        self.timer.tv_nsec = ns % NS
        io_uring_prep_timeout(sqe, &self.timer, 0, 0)
        io_uring_sqe_set_data64(sqe, TAG_TIMER)
        self.timer_armed = True

    cdef bint wait_for_limits(self) noexcept nogil:
        # The next request is not taken before the timer rings.
        cdef uint64_t wait = self.held_back()
        self.held = wait != 0
        if not wait:
            return False
        self.queue.disable_notify()
        if not self.timer_armed:
            self.throttled += 1
            self.arm_timer(wait)
        return True

    cdef void answer(self, int slot) noexcept nogil:
        self.complete(&self.requests[slot])
        slot_give_back(&self.slots, slot)

    cdef void start_request(self, int slot, int count) noexcept nogil:
        cdef Request *request = &self.requests[slot]
        request.iov = slot_take(&self.slots, slot, count)
        self.parse(request, count)
        if self.block_device and request.action == ACTION_DISCARD:
            self.execute(request)        # an ioctl, which rings have for new kernels only
            self.answer(slot)
            return
        self.count(request)
        if request.action == ACTION_DONE:
            self.answer(slot)
        else:
            self.go_on(slot)

    cdef int pop_all(self) noexcept nogil:
        # Takes chains while there are slots, and hands over most of their requests: 0 when the
        # driver has no more or must wait, 1 when more may be there, < 0 when a ring is broken. At
        # most a queue full at once: a driver that never stops must not keep completions and the
        # end of this thread waiting.
        cdef int count
        cdef int slot
        cdef int taken = 0
        cdef unsigned int together = FIRST_TOGETHER
        self.held = False
        while slots_left(&self.slots) and not self.stop_asked():
            if taken == self.queue.size:
                return 1
            if self.wait_for_limits():
                return 0
            slot = slot_next(&self.slots)
            count = self.queue.pop(&self.requests[slot].head, self.segments)
            if count < 0:
                return count
            if count == 0:
                return 0
            taken += 1
            self.worked = True
            self.start_request(slot, count - 1)
            if io_uring_sq_ready(self.ring) >= together:
                together = min(2 * together, <unsigned int>MOST_TOGETHER)
                count = self.enter(0)
                if count < 0:
                    return count
        return 0

    cdef void reap(self) noexcept nogil:
        cdef io_uring_cqe *cqe
        cdef uint64_t tag
        cdef int64_t result
        while io_uring_peek_cqe(self.ring, &cqe) == 0:
            tag = cqe.user_data
            result = cqe.res
            io_uring_cqe_seen(self.ring, cqe)
            if tag == TAG_STOP:
                self.stop_armed = False
            else:
                self.outstanding -= 1
            if tag == TAG_KICK:
                self.kick_armed = False
            elif tag == TAG_TIMER:
                self.timer_armed = False
            elif tag < TAG_KICK:
                self.in_flight -= 1
                self.worked = True
                if self.has_more(&self.requests[tag], result):
                    self.go_on(<int>tag)
                else:
                    self.answer(<int>tag)

    cdef void go_on(self, int slot) noexcept nogil:
        # What the kernel does not take as it is, is done here; so is a read that it has at hand.
        # One that more wait behind goes with them: a ring takes many for one call.
        cdef Request *request = &self.requests[slot]
        cdef int64_t result
        while True:
            if self.is_for_here(request):
                result = self.perform(request, entries_of(request))
            elif self.queue.has_chains():
                break
            else:
                result = read_if_cached(&self.cache, self.fd, request, entries_of(request))
                if result == 0:
                    break
            if not self.has_more(request, result):
                self.answer(slot)
                return
        self.submit_request(slot)

    cdef bint is_for_here(self, Request *request) noexcept nogil:
        if by_writing(request):
            begin_step(request, self.block_device)
            return misaligned(request, 1, &self.alignment)
        return self.needs_bounce(request, entries_of(request))

    cdef bint has_more(self, Request *request, int64_t result) noexcept nogil:
        # As advance(), but at the end of the thread no further piece of a range is begun.
        if not self.advance(request, result):
            return False
        if is_range(request) and self.stop_for_good():
            request.status = VIRTIO_BLK_S_IOERR
            return False
        return True

    cdef int enter(self, unsigned int wait) noexcept nogil:
        # Submits, and waits for a completion if asked to. 0, or the errno of a ring that fails
        # for good, < 0. One that is short of memory is tried again, after a moment.
        cdef pollfd stop = pollfd(self.stop_fd, POLLIN, 0)
        cdef int rc = io_uring_submit_and_wait(self.ring, wait)
        if rc >= 0 or rc == -EINTR:
            return 0
        if rc != -EAGAIN and rc != -EBUSY:
            return rc
        poll(&stop, 1, RETRY_MS)
        return 0

    cdef bint takes_chains(self) noexcept nogil:
        return slots_left(&self.slots) and not self.held

    cdef bint may_sleep(self) noexcept nogil:
        # While requests are in flight their completions bring us back, but the driver may wait for
        # its doorbell to be heard before that. False: chains have come meanwhile.
        return not (self.takes_chains() and self.queue.enable_notify())

    cdef bint look_around(self) noexcept nogil:
        # For chains and completions, after either; the driver needs no doorbell meanwhile.
        cdef PollRun run
        cdef Poller *poller = &self.flight if self.in_flight else &self.idle
        cdef bint found = self.something_to_do()
        if found or not self.worked or not self.polling or self.in_flight > SHALLOW or (
                not poll_begin(poller, &run)):
            return found
        self.worked = False
        self.queue.mute()
        while not found and not self.stop_asked() and poll_goes_on(&run):
            found = self.something_to_do()
        return poll_end(poller, &run, found)

    cdef bint something_to_do(self) noexcept nogil:
        return vmm_ring_has_done(self.ring) or (self.takes_chains() and self.queue.has_chains())

    cdef void begin(self) noexcept nogil:
        self.cache.refused = self.alignment.file != 0
        # What costs the kernel a look-up each time is registered; a kernel that cannot (the ring:
        # before 5.18) is asked by descriptor. A registered ring belongs to one thread. The image
        # is not registered: after a sudden end the ring would keep its lock for another 0.15 s.
        self.ring_registered = io_uring_register_ring_fd(self.ring) == 1
        self.kick_registered = io_uring_register_files(self.ring, &self.kick_fd, 1) == 0

    cdef void end(self) noexcept nogil:
        if self.kick_registered:
            io_uring_unregister_files(self.ring)
        if self.ring_registered:
            io_uring_unregister_ring_fd(self.ring)

    cdef void loop(self) noexcept nogil:
        cdef int more
        cdef int rc
        self.begin()
        while not self.stop_asked():
            if not self.stop_armed:
                self.arm_stop()
            if not self.kick_armed:
                self.arm()
            more = self.pop_all()
            if self.queue.needs_interrupt():
                signal_fd(self.call_fd)
            if more < 0:
                self.break_queue(more)
                break
            rc = self.enter(0)
            if rc == 0 and not more and not self.look_around() and self.may_sleep():
                self.worked = False
                rc = self.enter(1)
                # As soon as the driver sees what is done it has more, which is looked for anyway.
                self.queue.mute()
            if rc < 0:
                self.break_queue(rc)
                break
            self.reap()
        self.drain()
        self.end()

    cdef void cancel(self, uint64_t tag) noexcept nogil:
        cdef io_uring_sqe *sqe = self.next_sqe()
        io_uring_prep_cancel64(sqe, tag, 0)
        io_uring_sqe_set_data64(sqe, TAG_CANCEL)

    cdef void drain(self) noexcept nogil:
        # No guest buffer may be in use when this thread ends, and no read of the doorbell may
        # stay behind: it would swallow a kick meant for the next worker.
        cdef int retries = 0
        cdef int rc
        if self.kick_armed:
            self.cancel(TAG_KICK)
        if self.timer_armed:
            self.cancel(TAG_TIMER)
        while self.in_flight or self.kick_armed or self.timer_armed:
            rc = io_uring_submit_and_wait(self.ring, 1)
            if rc < 0 and rc != -EINTR:
                # What was not handed over never will be; what the kernel has, it completes.
                if self.outstanding <= <int>io_uring_sq_ready(self.ring):
                    return
                retries += 1
                if retries > RETRIES_MAX:
                    return
                if self.kick_armed:
                    signal_fd(self.kick_fd)      # ends its read without the ring's help
                poll(NULL, 0, RETRY_MS)
            self.reap()
