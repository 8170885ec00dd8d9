"""The unnamed file that shared RAM is: a memfd, or one with huge pages whatever the host's default.

The second is in a tmpfs of our own with huge=advise, which is never attached anywhere: nobody sees
it, and it is gone with the file's last user. A file system is made by who rules over a mount
namespace: root does it in place, everybody else in a child that lives for a moment in namespaces of
its own and leaves the descriptor in our table. Source: fsopen(2), user_namespaces(7), the kernel's
Documentation/filesystems/tmpfs.rst.
"""

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <linux/mount.h>
    #include <sched.h>
    #include <stdio.h>
    #include <string.h>
    #include <sys/mman.h>
    #include <sys/prctl.h>
    #include <sys/syscall.h>
    #include <sys/wait.h>
    #include <unistd.h>
    #ifndef MFD_HUGETLB
    #define MFD_HUGETLB 4U
    #endif
    #ifndef MFD_ALLOW_SEALING
    #define MFD_ALLOW_SEALING 2U
    #endif
    /* A snapshot seals it against writers. */
    static int vmm_memfd(unsigned long hugepage_size) {
        unsigned flags = hugepage_size
            ? MFD_HUGETLB | (unsigned)__builtin_ctzl(hugepage_size) << 26 : 0;
        return memfd_create("guest-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING | flags);
    }
    #define VMM_CHILD_BYTES (64 << 10)
    /* What is left over: closing a mount, and the end of a child with a namespace, each wait for
       all processors (synchronize_rcu: 0.1 to 8 ms), which no start should. */
    enum { VMM_FS, VMM_MOUNT, VMM_CHILD, VMM_REST };
    struct vmm_huge_job {
        int own_namespaces;
        volatile int rest[VMM_REST];    /* each -1 once it is settled */
        volatile int fd;                /* the file, once it is there */
        volatile int error;             /* errno of the step, 0: it did not come back */
        const char *volatile step;      /* the last that was begun */
        char uid_map[40], gid_map[40];
    };
    /* From here on to vmm_huge_child(): only system calls, because the child may run in our own
       address space, where other threads hold locks that it must not wait for. Its stack is its
       own, and it writes nothing but the job and the errno of the thread that waits for it. */
    static int vmm_huge_step(struct vmm_huge_job *job, const char *step, long rc) {
        if (rc < 0) { job->error = errno; job->step = step; return -1; }
        return (int)rc;
    }
    #define VMM_STEP(name, call) (job->step = (name), vmm_huge_step(job, (name), (call)))
    static int vmm_huge_option(struct vmm_huge_job *job, const char *step, const char *name,
                               const char *value) {
        return VMM_STEP(step, syscall(SYS_fsconfig, job->rest[VMM_FS], FSCONFIG_SET_STRING, name,
                                      value, 0));
    }
    static int vmm_huge_make(struct vmm_huge_job *job) {
        const int attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
        int fs = job->rest[VMM_FS] = VMM_STEP("fsopen", syscall(SYS_fsopen, "tmpfs",
                                                                FSOPEN_CLOEXEC));
        if (fs < 0 || vmm_huge_option(job, "fsconfig(size)", "size", "0") < 0
            || vmm_huge_option(job, "fsconfig(huge=advise)", "huge", "advise") < 0
            || VMM_STEP("fsconfig(create)",
                        syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0)) < 0)
            return -1;
        job->rest[VMM_MOUNT] = VMM_STEP("fsmount", syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC,
                                                           attributes));
        if (job->rest[VMM_MOUNT] < 0) return -1;
        job->fd = VMM_STEP("open(O_TMPFILE)", syscall(SYS_openat, job->rest[VMM_MOUNT], ".",
                                                      O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
        return job->fd < 0 ? -1 : 0;
    }
    static int vmm_huge_put(struct vmm_huge_job *job, const char *path, const char *text) {
        int rc, fd = VMM_STEP(path, syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CLOEXEC, 0));
        if (fd < 0) return -1;
        rc = VMM_STEP(path, syscall(SYS_write, fd, text, strlen(text)));
        syscall(SYS_close, fd);
        return rc;
    }
    static int vmm_huge_child(void *arg) {
        struct vmm_huge_job *job = arg;
        /* Without an id of its own in the namespace no file can be made: EOVERFLOW. */
        if (job->own_namespaces
            && (vmm_huge_put(job, "/proc/self/setgroups", "deny") < 0
                || vmm_huge_put(job, "/proc/self/uid_map", job->uid_map) < 0
                || vmm_huge_put(job, "/proc/self/gid_map", job->gid_map) < 0))
            return 1;
        return vmm_huge_make(job) < 0;
    }
    static void vmm_huge_settle(volatile int *rest) {
        if (rest[VMM_MOUNT] >= 0) close(rest[VMM_MOUNT]);
        if (rest[VMM_FS] >= 0) close(rest[VMM_FS]);
        if (rest[VMM_CHILD] > 0)
            while (waitpid(rest[VMM_CHILD], NULL, __WALL) < 0 && errno == EINTR) {}
        rest[VMM_FS] = rest[VMM_MOUNT] = rest[VMM_CHILD] = -1;
    }
    /* Lets a child do it. `share` 0: on a copy of our memory, so that a system-call filter which
       kills ends the child alone. No signal is taken meanwhile: the child has our handlers. */
    static int vmm_huge_by_child(struct vmm_huge_job *job, int share) {
        unsigned long all = ~0UL, before;
        int pid, flags = CLONE_VFORK | CLONE_FILES | (share ? CLONE_VM : 0)
            | (job->own_namespaces ? CLONE_NEWUSER | CLONE_NEWNS : 0);
        struct vmm_huge_job *shared = mmap(NULL, VMM_CHILD_BYTES, PROT_READ | PROT_WRITE,
                                           MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if ((void *)shared == MAP_FAILED) return vmm_huge_step(job, "mmap", -1);
        vmm_huge_settle(job->rest);
        job->error = 0;
        *shared = *job;
        syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &before, sizeof all);
        /* SAFETY: the stack grows down from the mapping's end to the job at its beginning, and
           needs some 1 KiB of 64. CLONE_VFORK: when it returns, the child uses neither any more.
           Without an exit signal, no handler and no wait() of others' ever hears of it. */
        pid = VMM_STEP("clone", clone(vmm_huge_child, (char *)shared + VMM_CHILD_BYTES, flags,
                                      shared));
        syscall(SYS_rt_sigprocmask, SIG_SETMASK, &before, NULL, sizeof before);
        if (pid >= 0) {
            *job = *shared;
            job->rest[VMM_CHILD] = pid;
        }
        munmap(shared, VMM_CHILD_BYTES);
        return job->fd >= 0 ? 0 : -1;
    }
    static int vmm_huge_anyhow(struct vmm_huge_job *job) {
        int filtered = prctl(PR_GET_SECCOMP, 0, 0, 0, 0) > 0;
        if (!filtered) {
            if (vmm_huge_make(job) == 0) return 0;
            if (job->error != EPERM) return -1;
        } else if (geteuid() == 0) {
            if (vmm_huge_by_child(job, 0) == 0) return 0;
        }
        job->own_namespaces = 1;
        return vmm_huge_by_child(job, !filtered);
    }
    /* The descriptor; or -1, then *step and *error say what was refused and how (0: the child did
       not come back from it). *rest is to be settled, some time, in either case. */
    static int vmm_huge_file(int *rest, const char **step, int *error) {
        struct vmm_huge_job job = {.fd = -1, .rest = {-1, -1, -1}};
        snprintf(job.uid_map, sizeof job.uid_map, "%u %u 1", geteuid(), geteuid());
        snprintf(job.gid_map, sizeof job.gid_map, "%u %u 1", getegid(), getegid());
        vmm_huge_anyhow(&job);
        memcpy(rest, (const int *)job.rest, sizeof job.rest);
        *step = job.step;
        *error = job.error;
        return job.fd;
    }
    /* Another file of the file system of an earlier one. */
    static int vmm_huge_again(int mount) {
        return openat(mount, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    }
    static int vmm_dup_mount(int *rest) {
        return rest[VMM_MOUNT] < 0 ? -1 : fcntl(rest[VMM_MOUNT], F_DUPFD_CLOEXEC, 3);
    }
    /* The first letter of what the host allows for memfds: [a]lways, [a]dvise, [w]ithin_size,
       [f]orce, [n]ever, [d]eny; 0 where it does not say. */
    static char vmm_shmem_policy(void) {
        char text[128] = {0}, *found;
        int fd = open("/sys/kernel/mm/transparent_hugepage/shmem_enabled", O_RDONLY | O_CLOEXEC);
        if (fd < 0) return 0;
        if (read(fd, text, sizeof text - 1) < 0) text[0] = 0;
        close(fd);
        found = strchr(text, '[');
        return found ? found[1] : 0;
    }
    """
    # Each is told above; any thread. ``rest``: three integers, -1 before.
    int vmm_memfd(unsigned long hugepage_size) nogil
    int vmm_huge_file(int *rest, const char **step, int *error) nogil
    void vmm_huge_settle(int *rest) nogil
    int vmm_huge_again(int mount) nogil
    int vmm_dup_mount(int *rest) nogil
    char vmm_shmem_policy() nogil
