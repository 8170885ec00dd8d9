# liburing, as far as the disks' engine uses it.

from libc.stdint cimport int64_t, uint64_t

from vmm._native.disk.iov cimport iovec

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <liburing.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    #ifndef IORING_SETUP_COOP_TASKRUN
    #define IORING_SETUP_COOP_TASKRUN (1U << 8)
    #define IORING_SETUP_TASKRUN_FLAG (1U << 9)
    #define IORING_SQ_TASKRUN (1U << 2)
    #endif
    /* A ring makes calls that no filter sees: this one makes none but those that we need. */
    static int vmm_ring_restrict(struct io_uring *ring) {
        static const unsigned char calls[] = {
            IORING_OP_READ, IORING_OP_WRITE, IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_FSYNC,
            IORING_OP_FALLOCATE, IORING_OP_TIMEOUT, IORING_OP_POLL_ADD, IORING_OP_ASYNC_CANCEL,
        };
        static const unsigned char uses[] = {
            IORING_REGISTER_FILES, IORING_UNREGISTER_FILES, IORING_REGISTER_PROBE,
            IORING_REGISTER_RING_FDS, IORING_UNREGISTER_RING_FDS, IORING_REGISTER_ENABLE_RINGS,
        };
        struct io_uring_restriction rules[sizeof calls + sizeof uses + 1] = {0};
        unsigned n = 0, i;
        for (i = 0; i < sizeof calls; i++, n++) {
            rules[n].opcode = IORING_RESTRICTION_SQE_OP;
            rules[n].sqe_op = calls[i];
        }
        for (i = 0; i < sizeof uses; i++, n++) {
            rules[n].opcode = IORING_RESTRICTION_REGISTER_OP;
            rules[n].register_op = uses[i];
        }
        rules[n].opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED;
        rules[n++].sqe_flags = IOSQE_FIXED_FILE;
        /* Not every liburing.so has functions for these two. */
        int fd = ring->ring_fd;
        if (syscall(SYS_io_uring_register, fd, IORING_REGISTER_RESTRICTIONS, rules, n) < 0
            || syscall(SYS_io_uring_register, fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0) < 0)
            return -errno;
        return 0;
    }
    /* What is done is told when we call, and shown by a flag: no processor is interrupted for it
     * (Linux 5.19; 5 to 10 % more requests with 32 under way). */
    static int vmm_ring_init(unsigned entries, struct io_uring *ring) {
        unsigned flags = IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG;
        int rc = io_uring_queue_init(entries, ring, flags | IORING_SETUP_R_DISABLED);
        if (rc == -EINVAL) rc = io_uring_queue_init(entries, ring, IORING_SETUP_R_DISABLED);
        if (rc == -EINVAL) return io_uring_queue_init(entries, ring, 0);    /* before 5.10 */
        /* One that was not made has no descriptor to close: its 0 is somebody else's. */
        if (rc < 0) return rc;
        rc = vmm_ring_restrict(ring);
        if (rc < 0) io_uring_queue_exit(ring);
        return rc;
    }
    static int vmm_ring_has_done(const struct io_uring *ring) {
        return io_uring_cq_ready(ring)
            || __atomic_load_n(ring->sq.kflags, __ATOMIC_RELAXED) & IORING_SQ_TASKRUN;
    }
    """
    struct io_uring:
        pass
    struct io_uring_sqe:
        pass
    struct io_uring_cqe:
        uint64_t user_data
        int res
    struct __kernel_timespec:
        int64_t tv_sec
        long long tv_nsec
    struct io_uring_probe:
        pass
    int IORING_FSYNC_DATASYNC
    int IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_FSYNC, IORING_OP_FALLOCATE
    int IORING_OP_READ, IORING_OP_WRITE
    int io_uring_queue_init(unsigned int entries, io_uring *ring, unsigned int flags) nogil
    void io_uring_queue_exit(io_uring *ring) nogil
    io_uring_sqe *io_uring_get_sqe(io_uring *ring) nogil
    int io_uring_submit(io_uring *ring) nogil
    int io_uring_submit_and_wait(io_uring *ring, unsigned int count) nogil
    unsigned int io_uring_sq_ready(const io_uring *ring) nogil
    int io_uring_peek_cqe(io_uring *ring, io_uring_cqe **cqe) nogil
    int vmm_ring_init(unsigned int entries, io_uring *ring) nogil
    bint vmm_ring_has_done(const io_uring *ring) nogil
    void io_uring_cqe_seen(io_uring *ring, io_uring_cqe *cqe) nogil
    int IOSQE_FIXED_FILE
    void io_uring_sqe_set_flags(io_uring_sqe *sqe, unsigned int flags) nogil
    int io_uring_register_files(io_uring *ring, const int *files, unsigned int count) nogil
    int io_uring_unregister_files(io_uring *ring) nogil
    int io_uring_register_ring_fd(io_uring *ring) nogil
    int io_uring_unregister_ring_fd(io_uring *ring) nogil
    void io_uring_sqe_set_data64(io_uring_sqe *sqe, uint64_t data) nogil
    void io_uring_prep_read(io_uring_sqe *sqe, int fd, void *buf, unsigned int n,
                            uint64_t offset) nogil
    void io_uring_prep_write(io_uring_sqe *sqe, int fd, const void *buf, unsigned int n,
                             uint64_t offset) nogil
    void io_uring_prep_readv(io_uring_sqe *sqe, int fd, const iovec *iov, unsigned int n,
                             uint64_t offset) nogil
    void io_uring_prep_writev(io_uring_sqe *sqe, int fd, const iovec *iov, unsigned int n,
                              uint64_t offset) nogil
    void io_uring_prep_timeout(io_uring_sqe *sqe, __kernel_timespec *time, unsigned int count,
                               unsigned int flags) nogil
    void io_uring_prep_fsync(io_uring_sqe *sqe, int fd, unsigned int flags) nogil
    void io_uring_prep_fallocate(io_uring_sqe *sqe, int fd, int mode, int64_t offset,
                                 int64_t length) nogil
    void io_uring_prep_cancel64(io_uring_sqe *sqe, uint64_t data, int flags) nogil
    void io_uring_prep_poll_add(io_uring_sqe *sqe, int fd, unsigned int mask) nogil
    io_uring_probe *io_uring_get_probe_ring(io_uring *ring) nogil
    void io_uring_free_probe(io_uring_probe *probe) nogil
    int io_uring_opcode_supported(const io_uring_probe *probe, int op) nogil

cdef inline bint ring_is_there() noexcept nogil:
    # Made, with all operations, and given back.
    cdef io_uring ring
    cdef io_uring_probe *probe
    cdef int[6] needed
    cdef bint good = True
    cdef int i
    needed[:] = [IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_FSYNC, IORING_OP_FALLOCATE,
                 IORING_OP_READ, IORING_OP_WRITE]
    if io_uring_queue_init(2, &ring, 0) < 0:
        return False
    probe = io_uring_get_probe_ring(&ring)
    if probe == NULL:
        good = False
    else:
        for i in range(6):
            good = good and io_uring_opcode_supported(probe, needed[i]) != 0
        io_uring_free_probe(probe)
    io_uring_queue_exit(&ring)
    return good
