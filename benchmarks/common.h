/* What the C programs here share. */
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <time.h>

static long must(long rc, const char *what)
{
    if (rc < 0) {
        perror(what);
        exit(1);
    }
    return rc;
}

/* Microseconds. */
static inline double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

/* Flat 32-bit protected mode, at `entry`. */
static void registers(int vcpu, unsigned long long entry)
{
    struct kvm_segment code = {0, 0xffffffff, 8, 11, 1, 0, 1, 1, 0, 1, 0, 0, 0};
    struct kvm_segment data = {0, 0xffffffff, 16, 3, 1, 0, 1, 1, 0, 1, 0, 0, 0};
    struct kvm_regs regs = {.rip = entry, .rflags = 2};
    struct kvm_sregs sregs;
    must(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
    sregs.cs = code;
    sregs.ds = sregs.es = sregs.ss = sregs.fs = sregs.gs = data;
    sregs.cr0 |= 1;
    must(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
    must(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
}
