"""How much a disk may do: token buckets for its requests and their bytes, shared by its queues.

A bucket fills evenly, in `refill_ns` from empty to full. A request may begin while there is one
token in it, and takes what it costs then, below nothing if need be: the next waits for that.
"""

from libc.stdint cimport uint64_t

from vmm._native.host.clock cimport vmm_now_ns

cdef extern from *:
    """
    #include <pthread.h>
    typedef pthread_mutex_t vmm_pace_lock;
    """
    ctypedef struct vmm_pace_lock:
        pass
    int pthread_mutex_init(vmm_pace_lock *lock, void *attributes) nogil
    int pthread_mutex_lock(vmm_pace_lock *lock) nogil
    int pthread_mutex_unlock(vmm_pace_lock *lock) nogil

cdef enum:
    # Who waits does so at least this long: a bucket gets more than one token in it.
    PACE_WAIT_NS = 1000000

cdef struct Bucket:
    double size                  # 0: no limit
    double refill_ns
    double burst                 # once, before the rest
    double tokens
    uint64_t filled_at

cdef struct Pace:
    vmm_pace_lock lock
    Bucket requests
    Bucket bytes

cdef inline double bucket_wait(Bucket *bucket, uint64_t now) noexcept nogil:
    # Fills it, then: how many ns until there is a token in it.
    if bucket.size == 0 or bucket.burst > 0:
        return 0
    bucket.tokens += (now - bucket.filled_at) * bucket.size / bucket.refill_ns
    bucket.filled_at = now
    if bucket.tokens > bucket.size:
        bucket.tokens = bucket.size
    if bucket.tokens >= 1:
        return 0
    return (1 - bucket.tokens) * bucket.refill_ns / bucket.size

cdef inline void bucket_take(Bucket *bucket, double tokens) noexcept nogil:
    cdef double once = min(bucket.burst, tokens)
    bucket.burst -= once
    bucket.tokens -= tokens - once

cdef inline uint64_t pace_wait(Pace *pace) noexcept nogil:
    # 0: the next request may begin; else ns until it is worth asking again.
    cdef double wait
    cdef uint64_t now
    pthread_mutex_lock(&pace.lock)
    now = vmm_now_ns()
    wait = max(bucket_wait(&pace.requests, now), bucket_wait(&pace.bytes, now))
    pthread_mutex_unlock(&pace.lock)
    if wait <= 0:
        return 0
    return max(<uint64_t>wait, <uint64_t>PACE_WAIT_NS)

cdef inline void pace_take(Pace *pace, uint64_t requests, uint64_t bytes_) noexcept nogil:
    pthread_mutex_lock(&pace.lock)
    bucket_take(&pace.requests, requests)
    bucket_take(&pace.bytes, bytes_)
    pthread_mutex_unlock(&pace.lock)

cdef class Limits:
    cdef Pace pace
