"""The virtio-blk request loop with plain preadv and pwritev, one thread a queue.

The io_uring engine (uring.pyx) is a subclass: it shares how requests are read and answered.
"""

from libc.errno cimport EAGAIN, EINTR, ENOMEM, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from vmm._native.disk.direct cimport (
    BOUNCE, misaligned, move_between, vmm_bounce_map, vmm_bounce_unmap,
)
from vmm._native.disk.iov cimport iovec
from vmm._native.disk.limits cimport pace_take, pace_wait
from vmm._native.disk.ranges cimport another_way, begin_step, by_writing, is_range, range_mode
from vmm._native.disk.request cimport (
    ACTION_DISCARD, ACTION_DONE, ACTION_FLUSH, ACTION_READ, ACTION_WRITE, ACTION_ZERO, ZERO_BY_HOLE,
    ZERO_BY_RANGE, ZERO_BY_WRITING, Request, entries_of, moves_data, set_data, skip_done,
)
from vmm._native.disk.syscalls cimport *
from vmm._native.host.confine cimport KIND_DISK
from vmm._native.linux.virtio_blk cimport *
from vmm._native.virtio.polling cimport PollRun, poll_begin, poll_end, poll_goes_on
from vmm._native.virtio.virtqueue cimport Segment, VirtQueue, fetch_bytes
from vmm._native.virtio.worker cimport Worker, drain_fd, signal_fd

cdef enum:
    SECTOR = 512
    HEADER = 16
    RANGE = 16                   # struct virtio_blk_discard_write_zeroes
    TRIES_AT_ONCE = 8            # after EAGAIN or EINTR, then one each millisecond
    TRIES_MAX = 1000
    TRIES_NS = 1000000


cdef class Flushed:
    """Whether a flush of an open file has failed. Any thread.

    The kernel then counts pages as clean that are not on the disk, and says so once: the next flush
    would go well. So every later one fails as well, as long as the file is open.
    Source: fsync(2), NOTES; QEMU, block/file-posix.c, handle_aiocb_flush().
    """


cdef class BlkWorker(Worker):
    """Serves one queue of a disk. ``fd`` and the eventfds are borrowed; -1: no interrupt.

    ``sectors`` is the capacity in units of 512 bytes. Every request is checked against it.
    """

    engine = "preadv"

    def __cinit__(self, VirtQueue queue not None, int fd, uint64_t sectors, bint read_only,
                  bint block_device, bytes serial not None, int kick_fd, int call_fd,
                  int config_call_fd):
        self.kind = KIND_DISK
        self.queue = queue
        self.fd = fd
        self.sectors = sectors
        self.read_only = read_only
        self.block_device = block_device
        self.serial = serial[:20].ljust(20, b"\0")
        memcpy(self.serial_data, <const uint8_t *>self.serial, 20)
        self.kick_fd = kick_fd
        self.call_fd = call_fd
        self.config_call_fd = config_call_fd
        self.writeback = 1
        self.can_discard = True
        self.flushed = Flushed()
        self.polling = True
        self.zero_methods[0] = ZERO_BY_RANGE
        self.zero_methods[1] = ZERO_BY_HOLE
        cdef size_t size = queue.size
        self.segments = <Segment *>calloc(size, sizeof(Segment))
        self.requests = <Request *>calloc(1, sizeof(Request))
        self.vectors = <iovec *>calloc(size, sizeof(iovec))
        if not (self.segments and self.requests and self.vectors):
            raise MemoryError
        self.requests[0].iov = self.vectors

    def __dealloc__(self):
        self.halt()
        free(self.segments)
        free(self.requests)
        free(self.vectors)
        vmm_bounce_unmap(self.between, BOUNCE)

    def set_direct(self, uint32_t memory, uint32_t file):
        """Before start(): ``fd`` does direct I/O, with these alignments (powers of two)."""
        for value in (memory, file):
            if not 0 < value <= BOUNCE // 2 or value & (value - 1):
                raise ValueError(f"alignment {value}: a power of two up to {BOUNCE // 2}")
        self.alignment = Alignment(memory, file)

    def counters(self):
        """Requests and bytes so far, by kind."""
        return {"reads": self.reads, "writes": self.writes, "flushes": self.flushes,
                "discards": self.discards, "errors": self.errors,
                "read_bytes": self.read_bytes, "written_bytes": self.written_bytes,
                "bounced": self.bounced, "throttled": self.throttled,
                "polls": self.idle.tries + self.flight.tries,
                "polls_paid": self.idle.paid + self.flight.paid}

    cdef void parse(self, Request *request, int count) noexcept nogil:
        # `count` segments are in self.segments. Sets what is to be done, or answers at once.
        cdef uint8_t header[HEADER]
        cdef uint64_t have = 0
        cdef uint64_t take
        cdef uint64_t sector
        cdef uint32_t kind
        cdef int i
        request.action = ACTION_DONE
        request.status = VIRTIO_BLK_S_IOERR
        request.status_hva = NULL
        request.written = 0
        request.data_bytes = 0
        request.tries = 0
        request.then_flush = False
        for i in range(count):
            if not self.segments[i].writable and have < HEADER:
                take = min(<uint64_t>self.segments[i].length, HEADER - have)
                fetch_bytes(header + have, self.segments[i].hva, take)
                have += take
        if count and self.segments[count - 1].writable:
            # SAFETY: a segment has at least one byte, and all of it is guest RAM.
            request.status_hva = <uint8_t *>(
                self.segments[count - 1].hva + self.segments[count - 1].length - 1)
            request.written = 1
        if request.status_hva == NULL or have < HEADER:
            return
        memcpy(&kind, header, 4)
        memcpy(&sector, header + 8, 8)
        request.offset = sector * SECTOR
        if kind == VIRTIO_BLK_T_IN or kind == VIRTIO_BLK_T_OUT:
            if kind == VIRTIO_BLK_T_OUT and self.read_only:
                return
            if kind == VIRTIO_BLK_T_IN:
                if not set_data(request, self.segments, count, True, 0, 1):
                    return
            elif not set_data(request, self.segments, count, False, HEADER, 0):
                return
            if request.length % SECTOR or sector > self.sectors:
                return
            if request.length // SECTOR > self.sectors - sector:
                return
            if request.length == 0:
                request.status = VIRTIO_BLK_S_OK
                return
            request.action = ACTION_READ if kind == VIRTIO_BLK_T_IN else ACTION_WRITE
            request.then_flush = kind == VIRTIO_BLK_T_OUT and not self.writeback
        elif kind == VIRTIO_BLK_T_FLUSH:
            if self.read_only:
                request.status = VIRTIO_BLK_S_OK     # nothing can be dirty
            elif not self.flushed.failed:
                request.action = ACTION_FLUSH
        elif kind == VIRTIO_BLK_T_GET_ID:
            self.answer_id(request, count)
        elif kind == VIRTIO_BLK_T_DISCARD or kind == VIRTIO_BLK_T_WRITE_ZEROES:
            self.parse_ranges(request, kind, count)
        else:
            request.status = VIRTIO_BLK_S_UNSUPP

    cdef void answer_id(self, Request *request, int count) noexcept nogil:
        cdef int i
        cdef uint32_t done = 0
        cdef uint32_t take
        if not set_data(request, self.segments, count, True, 0, 1) or request.length < 20:
            return
        for i in range(request.count):
            take = min(<uint32_t>request.iov[i].iov_len, 20 - done)
            memcpy(request.iov[i].iov_base, self.serial_data + done, take)
            done += take
            if done == 20:
                break
        request.written = 21
        request.status = VIRTIO_BLK_S_OK

    cdef void parse_ranges(self, Request *request, uint32_t kind, int count) noexcept nogil:
        cdef uint8_t data[RANGE]
        cdef uint64_t have = 0
        cdef uint64_t take
        cdef uint64_t sector
        cdef uint32_t sectors
        cdef uint32_t flags
        cdef int i
        if self.read_only or not set_data(request, self.segments, count, False, HEADER, 0):
            return
        if kind == VIRTIO_BLK_T_DISCARD and not self.can_discard:
            request.status = VIRTIO_BLK_S_UNSUPP
            return
        if request.length != RANGE:      # max_discard_seg and max_write_zeroes_seg are 1
            return
        for i in range(request.count):
            take = request.iov[i].iov_len
            fetch_bytes(data + have, request.iov[i].iov_base, take)
            have += take
        memcpy(&sector, data, 8)
        memcpy(&sectors, data + 8, 4)
        memcpy(&flags, data + 12, 4)
        if flags & ~<uint32_t>VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP or (
                flags and kind == VIRTIO_BLK_T_DISCARD):
            request.status = VIRTIO_BLK_S_UNSUPP
            return
        if sector > self.sectors or sectors > self.sectors - sector:
            return
        if sectors == 0:
            request.status = VIRTIO_BLK_S_OK
            return
        request.offset = sector * SECTOR
        request.length = <uint64_t>sectors * SECTOR
        request.unmap = flags != 0
        request.method = self.zero_methods[request.unmap]
        if self.alignment.file and (request.offset | request.length) & (self.alignment.file - 1):
            request.method = ZERO_BY_WRITING     # which minds who writes the rest of a block
        request.action = (
            ACTION_DISCARD if kind == VIRTIO_BLK_T_DISCARD else ACTION_ZERO)
        request.then_flush = not self.writeback

    cdef bint advance(self, Request *request, int64_t result) noexcept nogil:
        # One I/O call returned `result` (or -errno). True when there is more to do.
        if result < 0:
            if result == -EINTR or result == -EAGAIN:
                return self.again(request)
            if request.action == ACTION_FLUSH and not self.alignment.file:
                self.flushed.failed = True
            if is_range(request):
                return another_way(request, result, self.zero_methods)
            request.status = VIRTIO_BLK_S_IOERR
            return False
        request.tries = 0
        if is_range(request):
            if not by_writing(request):
                result = request.step
            elif self.pace != NULL:
                pace_take(self.pace, 0, result)
            if result == 0:
                request.status = VIRTIO_BLK_S_IOERR
                return False
            request.length -= result
            request.offset += result
            if request.length:
                return True
        elif moves_data(request):
            if result == 0:
                request.status = VIRTIO_BLK_S_IOERR      # the file is shorter than it was
                return False
            if <uint64_t>result < request.length:
                skip_done(request, result)
                return True
        if request.then_flush:
            request.then_flush = False
            if self.flushed.failed:
                request.status = VIRTIO_BLK_S_IOERR
                return False
            request.action = ACTION_FLUSH
            return True
        request.status = VIRTIO_BLK_S_OK
        return False

    cdef bint again(self, Request *request) noexcept nogil:
        # Some file systems say so for ever (a network's, one of FUSE): after a second it is an
        # error.
        request.tries += 1
        if request.tries > TRIES_MAX or self.stop_for_good():
            request.status = VIRTIO_BLK_S_IOERR
            return False
        if request.tries > TRIES_AT_ONCE:
            vmm_sleep_or(self.stop_fd, TRIES_NS)
        return True

    cdef void complete(self, Request *request) noexcept nogil:
        if request.status != VIRTIO_BLK_S_OK:
            self.errors += 1
        if request.status_hva != NULL:
            request.status_hva[0] = request.status
        self.queue.add_used(request.head, request.written)

    cdef void execute(self, Request *request) noexcept nogil:
        # Does everything a request asks for, on this thread.
        cdef bint more = request.action != ACTION_DONE
        self.count(request)
        while more:
            if is_range(request) and self.stop_for_good():
                request.status = VIRTIO_BLK_S_IOERR      # not done, and nobody waits for it
                break
            more = self.advance(request, self.perform(request, entries_of(request)))

    cdef int64_t perform(self, Request *request, int entries) noexcept nogil:
        cdef int64_t rc
        if self.needs_bounce(request, entries):
            return self.bounce(request, entries, request.action != ACTION_READ)
        if request.action == ACTION_READ:
            rc = preadv(self.fd, &request.iov[request.first], entries, request.offset)
        elif request.action == ACTION_WRITE:
            rc = pwritev(self.fd, &request.iov[request.first], entries, request.offset)
        elif request.action == ACTION_FLUSH:
            rc = fdatasync(self.fd)
        else:
            return self.change_range(request)
        return -errno if rc < 0 else rc

    cdef bint needs_bounce(self, const Request *request, int entries) noexcept nogil:
        return moves_data(request) and misaligned(request, entries, &self.alignment)

    cdef int64_t bounce(self, Request *request, int entries, bint write) noexcept nogil:
        if self.between == NULL:
            self.between = vmm_bounce_map(BOUNCE)
            if self.between == NULL:
                return -ENOMEM
        self.bounced += 1
        return move_between(self.fd, request, entries, self.between, self.alignment.file, write)

    cdef int64_t change_range(self, Request *request) noexcept nogil:
        cdef int64_t rc
        begin_step(request, self.block_device)
        if by_writing(request):
            if misaligned(request, 1, &self.alignment):
                return self.bounce(request, 1, True)
            rc = pwritev(self.fd, request.iov, 1, request.offset)
        elif self.block_device and request.action == ACTION_DISCARD:
            rc = vmm_block_discard(self.fd, request.offset, request.step)
        else:
            rc = fallocate(self.fd, range_mode(request), request.offset, request.step)
        return -errno if rc < 0 else rc

    cdef void count(self, Request *request) noexcept nogil:
        if self.pace != NULL:
            pace_take(self.pace, 1, request.length if moves_data(request) else 0)
        if request.action == ACTION_READ:
            self.reads += 1
            self.read_bytes += request.length
            request.written = request.data_bytes + 1
        elif request.action == ACTION_WRITE:
            self.writes += 1
            self.written_bytes += request.length
        elif request.action == ACTION_FLUSH:
            self.flushes += 1
        elif request.action != ACTION_DONE:
            self.discards += 1

    cdef uint64_t held_back(self) noexcept nogil:
        if self.pace == NULL or not self.queue.has_chains():
            return 0
        return pace_wait(self.pace)

    cdef bint look_for_chains(self) noexcept nogil:
        # For a moment; the driver needs no doorbell meanwhile.
        cdef PollRun run
        if not self.polling or not poll_begin(&self.idle, &run):
            return False
        self.queue.mute()
        while not self.queue.has_chains() and not self.stop_asked():
            if not poll_goes_on(&run):
                break
        return poll_end(&self.idle, &run, self.queue.has_chains())

    cdef bint serve(self) noexcept nogil:
        # Serves all chains that are there; False when the ring is broken.
        cdef int count
        cdef uint64_t wait
        cdef bint worked = False
        cdef Request *request = &self.requests[0]
        while not self.stop_asked():
            wait = self.held_back()
            if wait:
                self.throttled += 1
                self.queue.disable_notify()
                vmm_sleep_or(self.stop_fd, wait)
                continue
            count = self.queue.pop(&request.head, self.segments)
            if count < 0:
                self.break_queue(count)
                return False
            if count == 0:
                if worked and self.look_for_chains():
                    continue
                if self.queue.enable_notify():
                    continue
                return True
            worked = True
            self.queue.disable_notify()
            self.parse(request, count - 1)
            self.execute(request)
            self.complete(request)
            if self.queue.needs_interrupt():
                signal_fd(self.call_fd)
        return True

    cdef void loop(self) noexcept nogil:
        cdef pollfd fds[2]
        while not self.stop_asked() and self.serve():
            fds[0] = pollfd(self.kick_fd, POLLIN, 0)
            fds[1] = pollfd(self.stop_fd, POLLIN, 0)
            poll(fds, 2, -1)
            if fds[0].revents:
                drain_fd(self.kick_fd)
