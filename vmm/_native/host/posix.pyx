"""The few Linux calls that Python has no module for."""

from libc.errno cimport EACCES, EAGAIN, errno
from libc.stdint cimport uint64_t, uintptr_t
from libc.string cimport memcpy, memset
from posix.types cimport off_t

from vmm._native.host.fd cimport check
from vmm._native.host.hostio cimport vmm_write_now

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <pthread.h>
    #include <signal.h>
    #include <sys/prctl.h>
    #include <string.h>
    #include <sys/signalfd.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    #include <cpuid.h>
    static int vmm_signalfd(const int *signals, int count) {
        sigset_t set;
        int i;
        sigemptyset(&set);
        for (i = 0; i < count; i++) sigaddset(&set, signals[i]);
        i = pthread_sigmask(SIG_BLOCK, &set, NULL);
        if (i) { errno = i; return -1; }
        return signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    }
    static int vmm_next_signal(int fd) {
        struct signalfd_siginfo info;
        ssize_t n = read(fd, &info, sizeof info);
        return n == (ssize_t)sizeof info ? (int)info.ssi_signo : -1;
    }
    static int vmm_ofd_lock(int fd, int command, struct flock *lock) {
        int rc;
        lock->l_whence = SEEK_SET;
        lock->l_pid = 0;
        do { rc = fcntl(fd, command, lock); } while (rc < 0 && errno == EINTR);
        return rc;
    }
    static void vmm_cpuid(unsigned leaf, unsigned sub, unsigned *r) {
        __cpuid_count(leaf, sub, r[0], r[1], r[2], r[3]);
    }
    static int vmm_punch_hole(int fd, off_t offset, off_t length) {
        return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
    }
    #ifndef STATX_DIOALIGN
    #define STATX_DIOALIGN 0x2000U
    #endif
    /* Linux 6.1's members of struct statx, at their places: C libraries of before lack them. */
    static int vmm_dio_alignment(int fd, unsigned *memory, unsigned *file) {
        unsigned char found[256] = {0};
        unsigned mask;
        if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, found) < 0) return -1;
        memcpy(&mask, found, 4);
        if (!(mask & STATX_DIOALIGN)) return 0;
        memcpy(memory, found + 0x98, 4);
        memcpy(file, found + 0x9c, 4);
        return 1;
    }
    /* mlock2(2), which has no wrapper in older C libraries; 1 is MLOCK_ONFAULT. */
    static int vmm_lock_pages(void *start, size_t size) {
        return (int)syscall(SYS_mlock2, start, size, 1);
    }
    static int vmm_set_name(const char *name) { return prctl(PR_SET_NAME, name, 0, 0, 0); }
    """
    int F_OFD_SETLK, F_OFD_GETLK, F_RDLCK, F_WRLCK, F_UNLCK
    int vmm_signalfd(const int *signals, int count)
    int vmm_next_signal(int fd)
    struct flock:
        short l_type
        off_t l_start
        off_t l_len
    int vmm_ofd_lock(int fd, int command, flock *lock)
    int vmm_punch_hole(int fd, off_t offset, off_t length)
    int vmm_dio_alignment(int fd, unsigned int *memory, unsigned int *file)
    void vmm_cpuid(unsigned int leaf, unsigned int sub, unsigned int *r)
    int vmm_lock_pages(void *start, size_t size) nogil
    int vmm_set_name(const char *name)

cdef enum:
    MAX_SIGNALS = 16


def signalfd(signals):
    """A non-blocking signalfd for ``signals``, which are blocked in the calling thread.

    Call it on the control thread before any other thread starts: threads inherit the mask.
    """
    cdef int table[MAX_SIGNALS]
    cdef int count = 0
    if len(signals) > MAX_SIGNALS:
        raise ValueError(f"{len(signals)} signals: at most {MAX_SIGNALS}")
    for number in signals:
        table[count] = number
        count += 1
    return check(vmm_signalfd(table, count), b"signalfd")


def read_signalfd(int fd):
    """Numbers of the signals that arrived since the last call, oldest first."""
    found = []
    while True:
        number = vmm_next_signal(fd)
        if number < 0:
            return found
        found.append(number)


def write_now(int fd, bytes data):
    """As os.write(); a socket's other end is not waited for, whatever its mode."""
    return check(vmm_write_now(fd, <const char *>data, len(data)), b"write")


def ofd_lock(int fd, bint exclusive, off_t start, off_t length):
    """Take an open-file-description lock (fcntl(2), F_OFD_SETLK); BlockingIOError when held.

    ``length`` 0 reaches to the end of the file, however long it becomes.
    """
    cdef flock lock = wanted_lock(exclusive, start, length)
    cdef int rc = vmm_ofd_lock(fd, F_OFD_SETLK, &lock)
    if rc < 0 and (errno == EAGAIN or errno == EACCES):
        raise BlockingIOError(errno, "fcntl(F_OFD_SETLK): locked by another open file")
    check(rc, b"fcntl(F_OFD_SETLK)")


def ofd_conflict(int fd, bint exclusive, off_t start, off_t length):
    """A lock of another open file that ofd_lock() would meet: (exclusive, start, length) or None.

    Where there are several the kernel names one of them.
    """
    cdef flock lock = wanted_lock(exclusive, start, length)
    check(vmm_ofd_lock(fd, F_OFD_GETLK, &lock), b"fcntl(F_OFD_GETLK)")
    if lock.l_type == F_UNLCK:
        return None
    return lock.l_type == F_WRLCK, lock.l_start, lock.l_len


cdef flock wanted_lock(bint exclusive, off_t start, off_t length):
    cdef flock lock
    memset(&lock, 0, sizeof(lock))
    lock.l_type = F_WRLCK if exclusive else F_RDLCK
    lock.l_start = start
    lock.l_len = length
    return lock


def punch_hole(int fd, off_t offset, off_t length):
    """Give a range's space back, so that it reads as zeroes; the size stays (fallocate(2))."""
    check(vmm_punch_hole(fd, offset, length), b"fallocate(FALLOC_FL_PUNCH_HOLE)")


def dio_alignment(int fd):
    """(of buffers, of the file) in bytes for direct I/O on an open file, as statx(2) tells.

    (0, 0): it cannot have that. None: this kernel (before 6.1) or file system does not tell.
    """
    cdef unsigned int memory = 0
    cdef unsigned int file = 0
    if check(vmm_dio_alignment(fd, &memory, &file), b"statx(STATX_DIOALIGN)") == 0:
        return None
    return memory, file


cdef enum:
    ADDRESS_BITS = 0x80000008
cdef tuple address_bits = None


def lock_pages(uint64_t address, size_t size):
    """Pages of this mapping stay in memory once they are there (MLOCK_ONFAULT). IoctlError."""
    cdef int rc
    with nogil:
        rc = vmm_lock_pages(<void *><uintptr_t>address, size)
    check(rc, b"mlock2")


def host_cpuid(unsigned int leaf, unsigned int subleaf=0):
    """(eax, ebx, ecx, edx) of the CPUID instruction on the calling thread's CPU.

    The leaf that tells the width of addresses, the same on all CPUs, is asked for once: in a
    virtual machine that costs an exit, 20 us and more.
    """
    global address_bits
    cdef unsigned int registers[4]
    if leaf == <unsigned int>ADDRESS_BITS and address_bits is not None:
        return address_bits
    vmm_cpuid(leaf, subleaf, registers)
    found = (registers[0], registers[1], registers[2], registers[3])
    if leaf == <unsigned int>ADDRESS_BITS:
        address_bits = found
    return found


def set_process_name(bytes name, arguments):
    """Show the process as ``name`` (its first 15 bytes) and as ``arguments`` in ps(1).

    The kernel reads a process's arguments from its own memory (proc(5), /proc/pid/stat fields 48
    and 49), so they are overwritten in place, and cut when they do not fit. Never fails: a
    wrong name is no reason not to run.
    """
    vmm_set_name(name)
    with open("/proc/self/stat", "rb") as stat:
        fields = stat.read().rsplit(b") ", 1)[1].split()
    cdef unsigned long start = int(fields[45])
    cdef unsigned long end = int(fields[46])
    cdef bytes text = b"\0".join(arguments) + b"\0"
    if not 0 < start < end or end - start < 2:
        return
    text = text[:end - start - 1]
    # SAFETY: [start, end) is this process's own argument area, writable stack memory.
    memset(<void *>start, 0, end - start)
    memcpy(<void *>start, <const char *>text, len(text))
