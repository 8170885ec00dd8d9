# System calls that the disks' workers make.

from libc.stdint cimport int64_t, uint64_t

from vmm._native.disk.iov cimport iovec

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <fcntl.h>
    #include <linux/fs.h>
    #include <poll.h>
    #include <stdint.h>
    #include <sys/ioctl.h>
    #include <sys/uio.h>
    #include <unistd.h>
    static int vmm_block_discard(int fd, uint64_t start, uint64_t length) {
        uint64_t range[2] = {start, length};
        return ioctl(fd, BLKDISCARD, range);
    }
    static void vmm_sleep_or(int fd, uint64_t ns) {
        struct pollfd end = {fd, POLLIN, 0};
        struct timespec time = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
        ppoll(&end, 1, &time, NULL);
    }
    """
    int fallocate(int fd, int mode, int64_t offset, int64_t length) nogil
    int fdatasync(int fd) nogil
    int RWF_NOWAIT
    ssize_t preadv(int fd, iovec *iov, int count, int64_t offset) nogil
    ssize_t preadv2(int fd, const iovec *iov, int count, int64_t offset, int flags) nogil
    ssize_t pwritev(int fd, iovec *iov, int count, int64_t offset) nogil
    int vmm_block_discard(int fd, uint64_t start, uint64_t length) nogil
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout) nogil
    short POLLIN
    void vmm_sleep_or(int fd, uint64_t ns) nogil
