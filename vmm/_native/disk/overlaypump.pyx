"""The virtio-blk request loop over an overlay in place of a file."""

from libc.stdint cimport int64_t

from vmm._native.disk.blkpump cimport BlkWorker
from vmm._native.disk.overlay cimport Overlay
from vmm._native.disk.ranges cimport begin_step, by_writing
from vmm._native.disk.request cimport ACTION_FLUSH, ACTION_READ, ACTION_WRITE, Request


cdef class OverlayBlkWorker(BlkWorker):
    """As BlkWorker; ``overlay`` is to be set before start()."""

    engine = "overlay"
    cdef public Overlay overlay

    def start(self, str name):
        """As Worker; ValueError without an overlay."""
        if self.overlay is None:
            raise ValueError(f"{name}: no overlay to serve")
        BlkWorker.start(self, name)

    cdef int64_t perform(self, Request *request, int entries) noexcept nogil:
        if request.action == ACTION_READ:
            return self.overlay.readv(&request.iov[request.first], entries, request.offset)
        if request.action == ACTION_WRITE:
            return self.overlay.writev(&request.iov[request.first], entries, request.offset)
        if request.action == ACTION_FLUSH:
            return self.overlay.flush()
        begin_step(request, False)
        if by_writing(request):
            return self.overlay.writev(request.iov, 1, request.offset)
        return self.overlay.zero(request.offset, request.step)
