/* What a breakpoint, a step, a port's hook and reading registers cost at least: the ioctls alone.
 *
 * debug break|step|port|registers COUNT: does it COUNT times and prints the microseconds of one.
 * `break` stops at an execution breakpoint of DR0 and steps over it, as a debugger must. Each has
 * one vCPU in flat 32-bit mode that goes round in a loop. Only for benchmarks.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "common.h"

#define RAM (1ul << 20)
#define CODE_GPA 0x2000ul
#define DR7_LOCAL_0 0x401

/* inc eax; jmp to it */
static const unsigned char loop[] = {0x40, 0xeb, 0xfd};
/* out 0x10, al; jmp to it */
static const unsigned char port[] = {0xe6, 0x10, 0xeb, 0xfc};

static int vcpu;
static struct kvm_run *run;

static void make(const unsigned char *code, size_t size)
{
    int kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
    int vm = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
    char *ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct kvm_userspace_memory_region region = {0, 0, 0, RAM, (unsigned long)ram};
    must(ram == MAP_FAILED ? -1 : 0, "mmap");
    memcpy(ram + CODE_GPA, code, size);
    must(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
    must(ioctl(vm, KVM_SET_TSS_ADDR, 0xf8000000), "KVM_SET_TSS_ADDR");
    must(ioctl(vm, KVM_CREATE_IRQCHIP, 0), "KVM_CREATE_IRQCHIP");
    vcpu = must(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
    run = mmap(NULL, must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE"),
               PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    must(run == MAP_FAILED ? -1 : 0, "mmap of the vCPU");
    registers(vcpu, CODE_GPA);
}

static void enter(unsigned reason)
{
    must(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
    if (run->exit_reason != reason) {
        fprintf(stderr, "exit %u in place of %u\n", run->exit_reason, reason);
        exit(1);
    }
}

static void stop_at(int step)
{
    struct kvm_guest_debug debug = {.control = KVM_GUESTDBG_ENABLE};
    if (step) {
        debug.control |= KVM_GUESTDBG_SINGLESTEP;
    } else {
        debug.control |= KVM_GUESTDBG_USE_HW_BP;
        debug.arch.debugreg[0] = CODE_GPA;
        debug.arch.debugreg[7] = DR7_LOCAL_0;
    }
    must(ioctl(vcpu, KVM_SET_GUEST_DEBUG, &debug), "KVM_SET_GUEST_DEBUG");
}

static void once(const char *what)
{
    struct kvm_regs regs;
    if (!strcmp(what, "break")) {
        stop_at(1);
        enter(KVM_EXIT_DEBUG);
        stop_at(0);
        enter(KVM_EXIT_DEBUG);
    } else if (!strcmp(what, "step")) {
        enter(KVM_EXIT_DEBUG);
    } else if (!strcmp(what, "port")) {
        enter(KVM_EXIT_IO);
    } else {
        must(ioctl(vcpu, KVM_GET_REGS, &regs), "KVM_GET_REGS");
    }
}

int main(int argc, char **argv)
{
    int i, count = argc == 3 ? atoi(argv[2]) : 0;
    double started;
    if (count < 1)
        return 2;
    if (!strcmp(argv[1], "port"))
        make(port, sizeof port);
    else
        make(loop, sizeof loop);
    if (!strcmp(argv[1], "step"))
        stop_at(1);
    once(argv[1]);
    started = now();
    for (i = 0; i < count; i++)
        once(argv[1]);
    printf("%.3f\n", (now() - started) / count);
    return 0;
}
