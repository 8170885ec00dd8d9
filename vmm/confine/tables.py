"""Which system calls a kind of thread makes, and why: one line a call. Not read by a start.

`python -m vmm.confine.assembler` makes vmm/confine/programs.py of this. What stands in no line ends
the process with code 31. A thread that another one makes has its maker's filter as well, where that
has one by then: what the kinds below control may do, control may do, too. Every number that is
compared has 32 bits in the kernel, or is a flag in the lower half. Source: seccomp(2).
"""

from __future__ import annotations

from errno import EACCES, ENOSYS
from typing import NamedTuple

ALLOW = 0
WORD = 0xFFFFFFFF
# In place of this process's id, which is not known yet.
OWN_PID = 0x70696421


class Arg(NamedTuple):
    """The argument at ``position`` (from 0), as far as ``mask`` goes, must be ``value``."""

    position: int
    value: int
    mask: int = WORD


class Line(NamedTuple):
    """``call`` is allowed, where all of ``args`` hold; an ``answer`` is its errno instead.

    Several lines for one call: one of them must hold.
    """

    call: str
    why: str
    args: tuple[Arg, ...] = ()
    answer: int = ALLOW


def requests(why: str, numbers: dict[str, int]) -> tuple[Line, ...]:
    """A line for each ioctl."""
    return tuple(
        Line("ioctl", f"{name}: {why}", (Arg(1, number),)) for name, number in numbers.items()
    )


# linux/kvm.h, linux/vfio.h, linux/iommufd.h, linux/fs.h, asm-generic/ioctls.h: tests/abi.
KVM_RUN = {"KVM_RUN": 0xAE80}
KVM_OF_VCPUS = {
    "KVM_GET_REGS": 0x8090AE81,
    "KVM_SET_GSI_ROUTING": 0x4008AE6A,
    "KVM_IRQFD": 0x4020AE76,
    "KVM_IOEVENTFD": 0x4040AE79,
    "KVM_SET_USER_MEMORY_REGION": 0x4020AE46,
}
VFIO_OF_VCPUS = {
    "VFIO_DEVICE_SET_IRQS": 0x3B6E,
    "VFIO_DEVICE_RESET": 0x3B6F,
    "VFIO_IOMMU_MAP_DMA": 0x3B71,
    "VFIO_IOMMU_UNMAP_DMA": 0x3B72,
    "IOMMU_IOAS_MAP": 0x3B85,
    "IOMMU_IOAS_UNMAP": 0x3B86,
}
BLKDISCARD = {"BLKDISCARD": 0x1277}
OF_TERMINALS = {
    "TCGETS": 0x5401,
    "TCSETS": 0x5402,
    "TCSETSW": 0x5403,
    "TCSETSF": 0x5404,
    "TIOCGPGRP": 0x540F,
    "TIOCOUTQ": 0x5411,
    "TIOCGWINSZ": 0x5413,
    "TIOCGSID": 0x5429,
    "TIOCGDEV": 0x80045432,
}
OF_FILES = {"FIONBIO": 0x5421, "FIONCLEX": 0x5450, "FIOCLEX": 0x5451}
# The ioctls of KVM, and those of VFIO and iommufd, by their letter.
KVM_LETTER, VFIO_LETTER, LETTER_MASK = 0xAE00, 0x3B00, 0xFF00
PROT_WRITE, PROT_EXEC = 2, 4
MAP_ANONYMOUS = 0x20
MADV_DONTNEED, MADV_POPULATE_WRITE = 4, 23
PR_SET_NAME, PR_GET_NAME = 15, 16
RUSAGE_THREAD = 1
AF_UNIX = 1
SECCOMP_SET_MODE_FILTER = 1
CLONE_NEW = 0x7E020000
CLONE_VM, CLONE_THREAD = 0x100, 0x10000
# O_WRONLY, O_CREAT, O_TRUNC, O_APPEND, O_NONBLOCK, O_NOFOLLOW, O_CLOEXEC.
FRESH_FILE = 0o1 | 0o100 | 0o1000 | 0o2000 | 0o4000 | 0o400000 | 0o2000000
FCNTL = {
    "F_GETFD": 1,
    "F_SETFD": 2,
    "F_GETFL": 3,
    "F_SETFL": 4,
    "F_OFD_GETLK": 36,
    "F_OFD_SETLK": 37,
    "F_DUPFD_CLOEXEC": 1030,
    "F_ADD_SEALS": 1033,
    "F_GET_SEALS": 1034,
}

# Every thread's.
COMMON = (
    Line("read", "eventfds that wake it"),
    Line("write", "eventfds that wake others; interrupts; the last words of a thread"),
    Line("poll", "to wait for descriptors"),
    Line("ppoll", "the same, where the C library or we count in nanoseconds"),
    Line("futex", "locks, the interpreter's among them"),
    Line("madvise", "the C library gives the stack back at the end", (Arg(2, MADV_DONTNEED),)),
    Line("munmap", "the C library gives memory back"),
    Line("rt_sigprocmask", "the C library at a thread's end"),
    Line("rt_sigreturn", "the end of a signal's handler"),
    Line("restart_syscall", "a wait goes on after SIGSTOP and SIGCONT"),
    Line("clock_gettime", "clocks that the vDSO does not have"),
    Line("clock_nanosleep", "to wait"),
    Line("sched_yield", "a lock that will be free in a moment"),
    Line("gettid", "who it is"),
    Line("getpid", "who we are"),
    Line("prctl", "the last words name it", (Arg(0, PR_GET_NAME),)),
    Line("exit", "its end"),
    Line("exit_group", "the process's end"),
)
# The allocators of C and of Python.
MEMORY = (
    Line("mmap", "memory, none of it code", (Arg(2, 0, PROT_EXEC),)),
    Line("mprotect", "memory, none of it code", (Arg(2, 0, PROT_EXEC),)),
    Line("mremap", "large blocks of memory grow"),
    Line("brk", "memory"),
)
# What a vCPU's exits to Python may do. The guest's set-up of virtio devices, which makes threads
# and rings, goes to another thread: vmm/confine/hands.py.
VCPU = (
    *requests("the guest runs", KVM_RUN),
    *COMMON,
    *MEMORY,
    *requests("the guest changes an interrupt or moves a BAR", KVM_OF_VCPUS),
    *requests("the same for a device of the host's", VFIO_OF_VCPUS),
    Line("pread64", "configuration space of a device of the host's"),
    Line("pwrite64", "the same"),
    Line("eventfd2", "an interrupt that the guest begins to use"),
    Line("close", "one that it uses no more"),
    Line("sendto", "log lines, to journald as well"),
    Line("geteuid", "the C library's business before some calls"),
    Line("getrandom", "os.urandom()"),
    Line("sched_getaffinity", "glibc 2.41's getrandom() keeps state for each processor"),
    # A log's daemon that was started again is called by the control thread; a late import is an
    # error of the device then. Neither is the end of the guest.
    *(
        Line(call, "only the control thread opens anything", (), EACCES)
        for call in (
            "socket", "connect", "open", "openat", "stat", "lstat", "newfstatat", "readlink",
            "access", "getcwd",
        )
    ),
)  # fmt: skip
DISK = (
    Line("io_uring_enter", "requests, by the ring that is there"),
    Line("io_uring_register", "the ring's own descriptor, registered"),
    *COMMON,
    *MEMORY,
    Line("preadv", "requests without a ring"),
    Line("preadv2", "reads of what the page cache has"),
    Line("pwritev", "requests without a ring"),
    Line("pread64", "parts of blocks; layers of an overlay"),
    Line("pwrite64", "the same"),
    Line("fdatasync", "flush"),
    Line("fallocate", "discard, and zeroes"),
    Line("getrusage", "whether another thread took the processor", (Arg(0, RUSAGE_THREAD),)),
    *requests("discard on a block device", BLKDISCARD),
)
CONSOLE = (
    *COMMON,
    *MEMORY,
    Line("sendto", "output to a socket or the journal"),
    Line("recvfrom", "input from a socket"),
    Line("accept4", "who calls at a console's socket"),
    Line("getsockopt", "which user that is"),
    Line("geteuid", "whether it is ours"),
    Line("close", "he has gone"),
    Line("rt_sigaction", "the signal that ends a write that waits"),
    Line("fstat", "how large the console's file is"),
    Line("newfstatat", "the same"),
    Line("openat", "a fresh file for one that is full", (Arg(2, FRESH_FILE),)),
    Line("fchmod", "it gets the rights of the old one"),
    Line("rename", "the old one gets a number"),
    Line("dup3", "the fresh one takes its place"),
    Line("unlink", "what could not be finished"),
    Line("ftruncate", "a full file that cannot be renamed starts anew"),
)
RNG = (
    *COMMON,
    *MEMORY,
    Line("getrandom", "what the guest asks for"),
    Line("sched_getaffinity", "glibc 2.41's getrandom() keeps state for each processor"),
)
PREFAULT = (*COMMON, Line("madvise", "takes the pages", (Arg(2, MADV_POPULATE_WRITE),)))
CONTROL = (
    *requests("a vCPU's, which has this filter as well", KVM_RUN),
    *COMMON,
    *MEMORY,
    # --- a guest's reboot: a new machine ---
    Line("ioctl", "KVM", (Arg(1, KVM_LETTER, LETTER_MASK),)),
    Line("ioctl", "VFIO and iommufd", (Arg(1, VFIO_LETTER, LETTER_MASK),)),
    Line("memfd_create", "guest RAM"),
    Line("ftruncate", "its size; a lock file's"),
    *(
        Line("fcntl", f"{name}: its seals; flags, copies and locks", (Arg(1, number),))
        for name, number in FCNTL.items()
    ),
    Line("madvise", "guest RAM, of any kind"),
    Line("mbind", "guest RAM of one NUMA node"),
    Line("mlock2", "guest RAM that is to stay in memory"),
    Line("eventfd2", "interrupts and doorbells"),
    Line("pread64", "kernel and initramfs"),
    Line("pwrite64", "the same for a device of the host's, and lock files"),
    Line("preadv", "kernel and initramfs"),
    Line("preadv2", "the same"),
    Line("readv", "the same"),
    Line("pwritev2", "files and sockets"),
    Line("writev", "the same"),
    Line("pwritev", "a disk's worker's, which has this filter as well"),
    Line("wait4", "the child that made the file for guest RAM"),
    Line("mmap", "code of a module that is loaded late: of a file, and never writable",
         (Arg(2, PROT_EXEC, PROT_EXEC | PROT_WRITE), Arg(3, 0, MAP_ANONYMOUS))),
    # --- threads ---
    Line("clone", "a thread, and nothing else: no process, no namespace",
         (Arg(0, CLONE_VM | CLONE_THREAD, CLONE_VM | CLONE_THREAD | CLONE_NEW),)),
    Line("clone3", "its flags cannot be seen: the C library falls back to clone", (), ENOSYS),
    Line("set_robust_list", "the C library at a thread's beginning"),
    Line("rseq", "the same"),
    Line("rt_sigaction", "what a signal does"),
    Line("sigaltstack", "the C library"),
    Line("prctl", "a thread's name", (Arg(0, PR_SET_NAME),)),
    Line("seccomp", "a thread's own filter", (Arg(0, SECCOMP_SET_MODE_FILTER),)),
    Line("sched_getaffinity", "how many processors there are"),
    Line("sched_setaffinity", "a vCPU's thread is made on its processors (CPU_PLACEMENT)"),
    Line("tgkill", "a vCPU comes out of the guest; no other process", (Arg(0, OWN_PID),)),
    # --- disks ---
    Line("io_uring_setup", "a queue's ring"),
    Line("io_uring_register", "whether there are rings, and what they can"),
    Line("io_uring_enter", "a disk's worker's"),
    Line("fdatasync", "a disk's worker's"),
    Line("fsync", "files that are closed"),
    Line("fallocate", "a disk's worker's"),
    *requests("a disk's worker's", BLKDISCARD),
    # --- files: Landlock says which ---
    Line("openat", "logs anew, the state file, /proc, modules"),
    Line("open", "the same"),
    Line("close", "the same"),
    Line("lseek", "the same"),
    Line("fstat", "the same"),
    Line("stat", "the same"),
    Line("lstat", "the same"),
    Line("newfstatat", "the same"),
    Line("statx", "the same"),
    Line("fstatfs", "which file system it is in"),
    Line("statfs", "which file system it is in"),
    Line("getdents64", "folders of modules, descriptors of /proc"),
    Line("readlink", "paths of modules, of descriptors"),
    Line("getcwd", "the same"),
    Line("access", "whether a log's folder is there"),
    Line("mkdir", "the same"),
    Line("rename", "the state file, in one step; a console's file that is full"),
    Line("unlink", "sockets, at the end"),
    Line("unlinkat", "the same"),
    Line("rmdir", "the folder of an instance that never ran"),
    Line("fchmod", "a console's file"),
    Line("dup", "descriptors"),
    Line("dup2", "a log opened anew, under its old number"),
    Line("dup3", "the same"),
    *requests("terminals", OF_TERMINALS),
    *requests("flags of descriptors", OF_FILES),
    # --- the loop, and who calls ---
    Line("epoll_wait", "the loop"),
    Line("epoll_pwait", "the loop"),
    Line("epoll_ctl", "the loop"),
    Line("pidfd_open", "who is attached, and whether he lives"),
    Line("socket", "the manager, the journal, never a network", (Arg(0, AF_UNIX),)),
    Line("connect", "the same"),
    Line("accept4", "who calls at the control socket"),
    Line("sendto", "the manager, the journal"),
    Line("sendmsg", "guest RAM's descriptor, to who may attach"),
    Line("recvfrom", "who calls"),
    Line("getsockopt", "which user that is"),
    Line("setsockopt", "how much an answer may hold"),
    Line("getsockname", "a socket that was handed to us"),
    Line("getpeername", "the same"),
    Line("shutdown", "a connection's end"),
    Line("getrandom", "Python's dictionaries; the guest's generation id"),
    Line("getpgrp", "whether this job has its terminal"),
    Line("getuid", "who we are"),
    Line("geteuid", "who we are"),
    Line("getgid", "who we are"),
    Line("getegid", "who we are"),
    Line("uname", "what is told of the host"),
    Line("sysinfo", "the C library"),
    Line("getrusage", "processor time"),
)  # fmt: skip
# In the order of vmm/_native/host/confine.pxd.
TABLES = {
    "control": CONTROL,
    "vcpu": VCPU,
    "disk": DISK,
    "console": CONSOLE,
    "rng": RNG,
    "prefault": PREFAULT,
}
# The first call that a program looks for: the one that is made most often.
HOT = {"control": "ioctl", "vcpu": "ioctl", "disk": "io_uring_enter"}
