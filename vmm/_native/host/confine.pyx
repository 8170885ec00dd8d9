"""Gives up what this process may do: system calls, capabilities, files, core dumps.

The filters are those of vmm/confine/programs.py. A thread that makes a call which is not its kind's
is stopped by SIGSYS; the handler tells what it was, and the process ends with code 31.
Source: seccomp(2), landlock(7), capabilities(7), prctl(2).
"""

from libc.stdint cimport uint64_t
from libc.stdlib cimport malloc
from libc.string cimport memcpy

from vmm._native.host.fd cimport check

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <linux/capability.h>
    #include <linux/filter.h>
    #include <linux/seccomp.h>
    #include <poll.h>
    #include <signal.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/prctl.h>
    #include <sys/resource.h>
    #include <sys/stat.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    #include "syscall_names.h"
    #ifndef F_SEAL_SHRINK
    #define F_ADD_SEALS 1033
    #define F_SEAL_SEAL 1
    #define F_SEAL_SHRINK 2
    #define F_SEAL_GROW 4
    #endif
    #ifndef SECCOMP_RET_LOG
    #define SECCOMP_RET_LOG 0x7ffc0000U
    #endif
    /* Without it kernels before 5.16 switch speculation off for the thread, and thus for the guest,
       which decides for itself. */
    #ifndef SECCOMP_FILTER_FLAG_SPEC_ALLOW
    #define SECCOMP_FILTER_FLAG_SPEC_ALLOW 4UL
    #endif
    #define VMM_EXIT_CONFINED 31
    /* Stands in the programs for this process's id. */
    #define VMM_OWN_PID 0x70696421U
    enum { VMM_KINDS = 6, VMM_TEXT = 512 };
    static struct sock_fprog vmm_programs[VMM_KINDS];
    static int vmm_armed, vmm_locked, vmm_log_fd = -1;
    static uint64_t vmm_kept;

    /* From here to vmm_sigsys() only what a signal handler may do. */
    static size_t vmm_add(char *text, size_t at, const char *more) {
        while (*more && at < VMM_TEXT - 1) text[at++] = *more++;
        return at;
    }
    static size_t vmm_add_number(char *text, size_t at, long number) {
        char digits[24];
        int n = sizeof digits - 1;
        digits[n] = 0;
        do { digits[--n] = (char)('0' + number % 10); number /= 10; } while (number && n);
        return vmm_add(text, at, digits + n);
    }
    static const char *vmm_call_name(long number) {
        const char *name = vmm_call_names;
        long n;
        if (number < 0 || number >= VMM_CALLS) return "unknown";
        for (n = 0; n < number; n++) name += strlen(name) + 1;
        return *name ? name : "unknown";
    }
    static void vmm_tell(int fd, const char *text, size_t length) {
        struct pollfd end = {fd, POLLOUT, 0};
        ssize_t rc = 0;
        /* A reader that sleeps must not keep us from ending. */
        if (fd >= 0 && poll(&end, 1, 0) > 0) rc = write(fd, text, length);
        (void)rc;
    }
    static void vmm_end_confined(const char *what, long number) {
        char text[VMM_TEXT], thread[17] = {0};
        size_t at = 0;
        prctl(PR_GET_NAME, thread, 0, 0, 0);
        at = vmm_add(text, at, "error: the thread ");
        at = vmm_add(text, at, thread);
        at = vmm_add(text, at, what);
        if (number >= 0) {
            at = vmm_add_number(text, at, number);
            at = vmm_add(text, at, " (");
            at = vmm_add(text, at, vmm_call_name(number));
            at = vmm_add(text, at, "), which is not one of those that such a thread needs: a flaw "
                         "of ours, or somebody has broken in (VLLMD_HYPERVISOR_SECCOMP=log lets it "
                         "happen, and the kernel's log tells)");
        }
        at = vmm_add(text, at, "\\n");
        vmm_tell(2, text, at);
        vmm_tell(vmm_log_fd, text, at);
        syscall(SYS_exit_group, VMM_EXIT_CONFINED);
    }
    static void vmm_sigsys(int signal, siginfo_t *info, void *context) {
        (void)signal;
        (void)context;
        /* Sent by somebody, it means nothing. */
        if (info->si_code == 1 /* SYS_SECCOMP */)
            vmm_end_confined(" made the system call ", info->si_syscall);
    }

    static int vmm_hear_sigsys(void) {
        struct sigaction action = {0};
        action.sa_sigaction = vmm_sigsys;
        action.sa_flags = SA_SIGINFO | SA_NODEFER;
        sigfillset(&action.sa_mask);
        return sigaction(SIGSYS, &action, NULL);
    }
    static void vmm_unblock_sigsys(void) {
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, SIGSYS);
        pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    }
    static int vmm_filter(int kind) {
        if (!vmm_programs[kind].len) return 0;
        return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW,
                            &vmm_programs[kind]);
    }
    static int vmm_drop_capabilities(uint64_t keep) {
        struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
        struct __user_cap_data_struct data[2];
        uint64_t kept;
        if (syscall(SYS_capget, &header, data) < 0) return -1;
        kept = (data[0].permitted | (uint64_t)data[1].permitted << 32) & keep;
        data[0].effective = data[0].permitted = (uint32_t)kept;
        data[1].effective = data[1].permitted = (uint32_t)(kept >> 32);
        data[0].inheritable = data[1].inheritable = 0;
        return (int)syscall(SYS_capset, &header, data);
    }
    /* Which descriptors are open, from 3 on: one call, as /proc would take a tenth of a
       millisecond. Those from VMM_NEAR on are closed at once: nobody hands over so many. */
    enum { VMM_NEAR = 256, VMM_CLOSE_RANGE = 436 };
    static int vmm_open_descriptors(int *found) {
        struct pollfd all[VMM_NEAR];
        struct rlimit limit = {VMM_NEAR, VMM_NEAR};
        int n, count = 0;
        getrlimit(RLIMIT_NOFILE, &limit);
        int most = limit.rlim_cur < VMM_NEAR ? (int)limit.rlim_cur : VMM_NEAR;
        syscall(VMM_CLOSE_RANGE, VMM_NEAR, ~0U, 0U);
        for (n = 0; n < most; n++) all[n] = (struct pollfd){n, 0, 0};
        if (poll(all, (unsigned long)most, 0) < 0) return 0;
        for (n = 3; n < most; n++)
            if (!(all[n].revents & POLLNVAL)) found[count++] = n;
        return count;
    }
    static void vmm_confine_thread(int kind) {
        if (!vmm_armed) return;
        vmm_unblock_sigsys();
        /* One that begins after the lock has none to lose. */
        if (!vmm_locked && vmm_drop_capabilities(vmm_kept) < 0)
            vmm_end_confined(" cannot drop its capabilities", -1);
        if (vmm_filter(kind) < 0) vmm_end_confined(" cannot have its system-call filter", -1);
    }
    static void vmm_set_program(int kind, void *code, unsigned short length, int logs) {
        struct sock_filter *step = code;
        uint32_t pid = (uint32_t)getpid();
        int n;
        for (n = 0; n < length; n++) {
            if (logs && step[n].code == (BPF_RET | BPF_K) && step[n].k != SECCOMP_RET_ALLOW)
                step[n].k = SECCOMP_RET_LOG;
            if (step[n].code == (BPF_JMP | BPF_JEQ | BPF_K) && step[n].k == VMM_OWN_PID)
                step[n].k = pid;
        }
        vmm_programs[kind] = (struct sock_fprog){length, code};
    }
    static int vmm_no_core(void) {
        struct rlimit none = {0, 0};
        if (setrlimit(RLIMIT_CORE, &none) < 0) return -1;
        return prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    }

    /* linux/landlock.h, of kernels newer than the headers that this may be built with. */
    enum { VMM_LANDLOCK_CREATE = 444, VMM_LANDLOCK_ADD = 445, VMM_LANDLOCK_RESTRICT = 446 };
    struct vmm_ruleset { uint64_t files, net, scoped; };
    struct vmm_beneath { uint64_t rights; int32_t fd; } __attribute__((packed));
    /* What a rule for a file may allow: execute, write, read, truncate, ioctl of devices. */
    #define VMM_OF_FILES (1ULL << 0 | 1ULL << 1 | 1ULL << 2 | 1ULL << 14 | 1ULL << 15)
    static int vmm_landlock_abi(void) {
        return (int)syscall(VMM_LANDLOCK_CREATE, NULL, 0, 1UL);
    }
    static int vmm_landlock_make(uint64_t files, uint64_t net, uint64_t scoped) {
        struct vmm_ruleset rules = {files, net, scoped};
        return (int)syscall(VMM_LANDLOCK_CREATE, &rules, sizeof rules, 0UL);
    }
    static int vmm_landlock_allow_fd(int rules, int fd, uint64_t rights) {
        struct vmm_beneath beneath = {rights, fd};
        struct stat found;
        if (fstat(fd, &found) < 0) return -1;
        if (!S_ISDIR(found.st_mode)) beneath.rights &= VMM_OF_FILES;
        return (int)syscall(VMM_LANDLOCK_ADD, rules, 1UL, &beneath, 0UL);
    }
    static int vmm_landlock_allow(int rules, const char *path, uint64_t rights) {
        int rc, fd = open(path, O_PATH | O_CLOEXEC);
        if (fd < 0) return -1;
        rc = vmm_landlock_allow_fd(rules, fd, rights);
        close(fd);
        return rc;
    }
    static int vmm_landlock_enter(int rules) {
        return (int)syscall(VMM_LANDLOCK_RESTRICT, rules, 0UL);
    }
    static int vmm_seal_size(int fd) {
        return fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    }
    """
    int VMM_KINDS
    int vmm_armed, vmm_locked, vmm_log_fd
    uint64_t vmm_kept
    int PR_SET_NAME, PR_SET_NO_NEW_PRIVS
    int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d)
    int vmm_hear_sigsys()
    void vmm_unblock_sigsys()
    int vmm_filter(int kind)
    int vmm_drop_capabilities(uint64_t keep)
    int VMM_NEAR
    int vmm_open_descriptors(int *found)
    void vmm_confine_thread(int kind) nogil
    void vmm_set_program(int kind, void *code, unsigned short length, int logs)
    int vmm_no_core()
    int vmm_landlock_abi()
    int vmm_landlock_make(uint64_t files, uint64_t net, uint64_t scoped)
    int vmm_landlock_allow(int rules, const char *path, uint64_t rights)
    int vmm_landlock_allow_fd(int rules, int fd, uint64_t rights)
    int vmm_landlock_enter(int rules)
    int vmm_seal_size(int fd)

cdef extern from "<unistd.h>":
    int c_close "close"(int fd)

cdef enum:
    STEP_BYTES = 8               # struct sock_filter
    STEPS_MAX = 4096             # BPF_MAXINSNS

KINDS = VMM_KINDS


cdef void confine_thread(int kind) noexcept nogil:
    if kind != KIND_NONE:
        vmm_confine_thread(kind)


def arm(programs, bint logs, uint64_t keep):
    """From now on this process gets no new privileges, and each native thread confines itself.

    ``programs``: a filter (struct sock_filter, one after the other) for each kind, or none at all;
    ``logs``: what they refuse is told in the kernel's log, and done. ``keep``: a bit for each
    capability that stays. Control thread, before any other one begins.
    """
    cdef void *code
    if programs and len(programs) != VMM_KINDS:
        raise ValueError(f"{len(programs)} filters for {VMM_KINDS} kinds of threads")
    check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), b"prctl(PR_SET_NO_NEW_PRIVS)")
    check(vmm_hear_sigsys(), b"sigaction(SIGSYS)")
    vmm_unblock_sigsys()
    for kind, text in enumerate(programs):
        if len(text) % STEP_BYTES or not 0 < len(text) // STEP_BYTES <= STEPS_MAX:
            raise ValueError(f"a filter of {len(text)} bytes")
        code = malloc(len(text))    # for ever: threads use it
        if code == NULL:
            raise MemoryError
        memcpy(code, <const char *>text, len(text))
        vmm_set_program(kind, code, len(text) // STEP_BYTES, logs)
    global vmm_armed, vmm_kept
    vmm_kept = keep
    vmm_armed = 1


def open_descriptors():
    """The descriptors that are open, beside the standard ones; those from 256 on are closed."""
    cdef int found[256]
    cdef int count = vmm_open_descriptors(found)
    return [found[n] for n in range(count)]


def lock_privileges():
    """The calling thread loses its capabilities, but for those that arm() keeps. IoctlError.

    Without new privileges no program that it could execute gets them back.
    """
    global vmm_locked
    check(vmm_drop_capabilities(vmm_kept), b"capset")
    vmm_locked = 1


def lock_calls(int kind, int log_fd=-1):
    """The calling thread, and those that it makes, have the filter of this kind from now on.

    ``log_fd``: where the last words go beside stderr. IoctlError.
    """
    global vmm_log_fd
    vmm_log_fd = log_fd
    check(vmm_filter(kind), b"seccomp(SECCOMP_SET_MODE_FILTER)")


def no_core():
    """No core dumps, and no look into this process by others of its user. IoctlError."""
    check(vmm_no_core(), b"prctl(PR_SET_DUMPABLE)")


def name_thread(bytes name):
    """The calling thread is seen by this name, of at most 15 bytes, in ps(1)."""
    check(prctl(PR_SET_NAME, <unsigned long><const char *>name, 0, 0, 0), b"prctl(PR_SET_NAME)")


def seal_size(int fd):
    """Nobody changes a memfd's size, or its seals, any more. IoctlError: it has none."""
    check(vmm_seal_size(fd), b"fcntl(F_ADD_SEALS) of guest RAM")


def landlock_abi():
    """The version of Landlock's interface that this kernel has; 0: none, or it is switched off."""
    return max(0, vmm_landlock_abi())


def landlock(uint64_t files, uint64_t net, uint64_t scoped, rules):
    """The calling thread, and those that it makes, use files as ``rules`` allow, and no others.

    A rule is (path or descriptor, rights); what is not there is left out. ``files``, ``net`` and
    ``scoped`` are the rights that nothing has without a rule. What is open stays so. IoctlError.
    """
    cdef int fd = check(vmm_landlock_make(files, net, scoped), b"landlock_create_ruleset")
    try:
        for place, rights in rules:
            if isinstance(place, int):
                vmm_landlock_allow_fd(fd, place, rights & files)
            else:
                vmm_landlock_allow(fd, <bytes>place, rights & files)
        check(vmm_landlock_enter(fd), b"landlock_restrict_self")
    finally:
        c_close(fd)
