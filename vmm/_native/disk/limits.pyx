"""The limits of a disk, which its workers keep. Imported only where there are any."""

from vmm._native.disk.blkpump cimport BlkWorker
from vmm._native.disk.limits cimport Bucket, pthread_mutex_init
from vmm._native.host.clock cimport vmm_now_ns


cdef class Limits:
    """Of ``requests`` and of ``bytes``, each (size, ms in which it fills, once more) or None.

    One for all queues of a disk; it goes on over a guest's reboot. Any thread.
    """

    def __cinit__(self, requests, bytes_):
        pthread_mutex_init(&self.pace.lock, NULL)
        self.pace.requests = filled(requests)
        self.pace.bytes = filled(bytes_)

    def govern(self, BlkWorker worker not None):
        """Before its start()."""
        # SAFETY: the worker keeps this object as long as it has the pointer.
        worker.limits = self
        worker.pace = &self.pace


cdef Bucket filled(limit) except *:
    cdef Bucket bucket = Bucket(0, 1, 0, 0, 0)
    if limit is None:
        return bucket
    size, refill_ms, burst = limit
    if not (size > 0 and refill_ms > 0 and burst >= 0):
        raise ValueError(f"a limit of {size} in {refill_ms} ms and {burst} once")
    bucket.size = bucket.tokens = size
    bucket.refill_ns = refill_ms * 1e6
    bucket.burst = burst
    bucket.filled_at = vmm_now_ns()
    return bucket
