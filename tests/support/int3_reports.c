/* A KVM that reports int3, where the one beneath cannot.
 *
 * Some KVMs interpret ring 0 and know no int3: they end with an internal error whose instruction
 * bytes begin with 0xcc. Preloaded, this turns that exit into the one that api.rst promises for
 * KVM_GUESTDBG_USE_SW_BP: KVM_EXIT_DEBUG, exception 3, the linear address of the int3, registers
 * untouched. dr6 and dr7 are not told, as by the kernel, and hold anything. A #BP that is given to the
 * guest (KVM_GUESTDBG_INJECT_BP) has the address behind the int3, as processors push it; here rip
 * shows that before the guest runs again. All else is the kernel's: memory, threads, single steps.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/types.h>

enum { FDS = 4096, INT3 = 0xcc, BREAK_EXCEPTION = 3, NOT_TOLD = 0x5a5a };

static _Atomic(struct kvm_run *) runs[FDS];
static struct kvm_guest_debug settings[FDS]; /* of a vCPU, by the one who drives it */

static int (*kernel_ioctl)(int, unsigned long, ...);
static void *(*kernel_mmap)(void *, size_t, int, int, int, off_t);

__attribute__((constructor)) static void find(void)
{
    kernel_ioctl = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
    kernel_mmap = (void *(*)(void *, size_t, int, int, int, off_t))dlsym(RTLD_NEXT, "mmap");
}

/* Who maps a vCPU's descriptor gets its struct kvm_run. */
void *mmap(void *where, size_t length, int prot, int flags, int fd, off_t offset)
{
    if (kernel_mmap == NULL)
        find();
    void *found = kernel_mmap(where, length, prot, flags, fd, offset);
    if (fd >= 0 && fd < FDS && offset == 0 && found != MAP_FAILED)
        runs[fd] = found;
    return found;
}

void *mmap64(void *where, size_t length, int prot, int flags, int fd, off_t offset)
{
    return mmap(where, length, prot, flags, fd, offset);
}

static int is_int3(const struct kvm_run *run)
{
    return run->exit_reason == KVM_EXIT_INTERNAL_ERROR &&
           run->emulation_failure.suberror == KVM_INTERNAL_ERROR_EMULATION &&
           run->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES &&
           run->emulation_failure.insn_size > 0 && run->emulation_failure.insn_bytes[0] == INT3;
}

static int report(int fd, struct kvm_run *run)
{
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    if (kernel_ioctl(fd, KVM_GET_REGS, &regs) || kernel_ioctl(fd, KVM_GET_SREGS, &sregs))
        return -1;
    /* With its error KVM has queued a #UD, which writing the registers takes back. */
    if (kernel_ioctl(fd, KVM_SET_REGS, &regs))
        return -1;
    run->exit_reason = KVM_EXIT_DEBUG;
    run->debug.arch.exception = BREAK_EXCEPTION;
    run->debug.arch.pc = sregs.cs.base + regs.rip;
    run->debug.arch.dr6 = run->debug.arch.dr7 = NOT_TOLD;
    return 0;
}

/* Before the #BP is queued: writing registers later would take it back. */
static int pass_int3(int fd)
{
    struct kvm_regs regs;
    if (kernel_ioctl(fd, KVM_GET_REGS, &regs))
        return -1;
    regs.rip += 1;
    return kernel_ioctl(fd, KVM_SET_REGS, &regs);
}

static int set_debug(int fd, struct kvm_guest_debug *debug)
{
    if (debug->control & KVM_GUESTDBG_INJECT_BP && pass_int3(fd))
        return -1;
    int answer = kernel_ioctl(fd, KVM_SET_GUEST_DEBUG, debug);
    if (answer == 0 && fd < FDS)
        settings[fd] = *debug;
    return answer;
}

/* Nobody has asked for int3s: the guest gets its #BP. */
static int give_it_to_the_guest(int fd)
{
    struct kvm_guest_debug debug = settings[fd];
    struct kvm_guest_debug once = debug;
    once.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_BP;
    return pass_int3(fd) || kernel_ioctl(fd, KVM_SET_GUEST_DEBUG, &once) ||
           kernel_ioctl(fd, KVM_SET_GUEST_DEBUG, &debug);
}

static int run_vcpu(int fd, void *argument)
{
    for (;;) {
        int answer = kernel_ioctl(fd, KVM_RUN, argument);
        if (answer || fd >= FDS || !is_int3(runs[fd]))
            return answer;
        if (settings[fd].control & KVM_GUESTDBG_USE_SW_BP)
            return report(fd, runs[fd]);
        if (give_it_to_the_guest(fd))
            return -1;
    }
}

int ioctl(int fd, unsigned long request, ...)
{
    va_list list;
    va_start(list, request);
    void *argument = va_arg(list, void *);
    va_end(list);
    if (kernel_ioctl == NULL)
        find();
    if (request == KVM_RUN)
        return run_vcpu(fd, argument);
    if (request == KVM_SET_GUEST_DEBUG)
        return set_debug(fd, argument);
    int answer = kernel_ioctl(fd, request, argument);
    if (request == KVM_CREATE_VCPU && answer >= 0 && answer < FDS)
        settings[answer].control = 0;
    return answer;
}
