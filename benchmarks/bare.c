/* What a start costs at least: the same ioctls as a VMM makes for one tiny ELF guest, and no more.
 *
 * bare KERNEL MIB VCPUS: loads the ELF's segments, starts vCPU 0 at its entry in 32-bit protected
 * mode, writes what it sends to port 0x3f8 to stdout. Only for benchmarks.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common.h"

#define LOW_MAX (3ull << 30)
#define HIGH_GPA (4ull << 30)

static char *memory(size_t size)
{
    char *at = mmap(NULL, size, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    must(at == MAP_FAILED ? -1 : 0, "mmap");
    return at;
}

static void slot(int vm, int number, unsigned long long gpa, size_t size, char *at)
{
    struct kvm_userspace_memory_region region = {number, 0, gpa, size, (unsigned long)at};
    must(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
}

static unsigned long long load(const char *path, char *low)
{
    Elf64_Ehdr head;
    int i, fd = must(open(path, O_RDONLY | O_CLOEXEC), path);
    must(pread(fd, &head, sizeof head, 0), "ELF header");
    for (i = 0; i < head.e_phnum; i++) {
        Elf64_Phdr part;
        must(pread(fd, &part, sizeof part, head.e_phoff + i * sizeof part), "program header");
        if (part.p_type == PT_LOAD)
            must(pread(fd, low + part.p_paddr, part.p_filesz, part.p_offset), "segment");
    }
    close(fd);
    return head.e_entry;
}

int main(int argc, char **argv)
{
    size_t size = argc == 4 ? strtoull(argv[2], NULL, 10) << 20 : 0;
    size_t low_size = size < LOW_MAX ? size : LOW_MAX;
    int i, kvm, vm, vcpu, first = -1, count = argc == 4 ? atoi(argv[3]) : 0;
    struct { struct kvm_cpuid2 head; struct kvm_cpuid_entry2 entries[256]; } cpuid;
    struct kvm_run *run = NULL;
    unsigned long identity = 0xfffbc000;
    char *low;
    if (!size || count < 1)
        return 2;
    kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
    vm = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
    low = memory(low_size);
    slot(vm, 0, 0, low_size, low);
    if (size > low_size)
        slot(vm, 1, HIGH_GPA, size - low_size, memory(size - low_size));
    must(ioctl(vm, KVM_SET_IDENTITY_MAP_ADDR, &identity), "KVM_SET_IDENTITY_MAP_ADDR");
    must(ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000), "KVM_SET_TSS_ADDR");
    must(ioctl(vm, KVM_CREATE_IRQCHIP, 0), "KVM_CREATE_IRQCHIP");
    cpuid.head.nent = 256;
    must(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid), "KVM_GET_SUPPORTED_CPUID");
    for (i = 0; i < count; i++) {
        vcpu = must(ioctl(vm, KVM_CREATE_VCPU, i), "KVM_CREATE_VCPU");
        must(ioctl(vcpu, KVM_SET_CPUID2, &cpuid), "KVM_SET_CPUID2");
        if (i == 0) {
            first = vcpu;
            run = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE,
                       MAP_SHARED, vcpu, 0);
            must(run == MAP_FAILED ? -1 : 0, "mmap of the vCPU");
        }
    }
    registers(first, load(argv[1], low));
    for (;;) {
        must(ioctl(first, KVM_RUN, 0), "KVM_RUN");
        if (run->exit_reason != KVM_EXIT_IO)
            return 1;
        if (run->io.port == 0x3f8 && run->io.direction == KVM_EXIT_IO_OUT)
            must(write(1, (char *)run + run->io.data_offset, 1), "stdout");
    }
}
