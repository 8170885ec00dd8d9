/* What a new VM, a restore and a fork cost at least: the same ioctls as a VMM makes, and no more.
 *
 * snapshot new|restore|fork ROUNDS: prints the microseconds of each round, a line each. The guest
 * has 4 MiB, writes one word into each of 16 pages and then to a port. `new` and `fork` end with the
 * first exit; `restore` finds the written pages, puts them and all of KVM's state back, and runs to
 * the exit. A VM has what its devices need of the kernel: interrupt routes without the 8259, two
 * pins with eventfds, and the eventfds of a virtio console's and a random number generator's queues
 * and messages; a fork has another id. No device's registers are made. Only for benchmarks.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include "common.h"

#define RAM (4ul << 20)
#define PAGE 4096ul
#define TOUCHED_GPA 0x200000ul
#define PAGES 16
#define CODE_GPA 0x100000ul
#define VMGENID_GPA 0xff000ul
#define PINS 24
/* One tells of the vCPUs' end, two are pins; messages: 3 and 2; doorbells: 2 and 1. */
#define EVENTS (1 + 2 + 5 + 3)
#define COM1_GSI 4
#define GED_GSI 13

/* mov edi, TOUCHED; mov ecx, PAGES; again: inc dword [edi]; add edi, 4096; loop again;
 * out 0x10, al; jmp to the start */
static const unsigned char code[] = {
    0xbf, 0, 0, 0x20, 0, 0xb9, PAGES, 0, 0, 0, 0xff, 0x07, 0x81, 0xc7, 0, 0x10, 0, 0,
    0xe2, 0xf6, 0xe6, 0x10, 0xeb, 0xe8,
};

struct cpuid { struct kvm_cpuid2 head; struct kvm_cpuid_entry2 entries[256]; };
struct msrs { struct kvm_msrs head; struct kvm_msr_entry entries[512]; };
struct state {
    struct kvm_sregs2 sregs;
    struct kvm_regs regs;
    struct kvm_xsave xsave;
    struct kvm_xcrs xcrs;
    struct kvm_lapic_state lapic;
    struct kvm_vcpu_events events;
    struct kvm_mp_state mp_state;
    struct kvm_debugregs debugregs;
    struct msrs msrs;
    struct kvm_irqchip chips[3];
    struct kvm_clock_data clock;
};
struct vm {
    int vm, vcpu, events[EVENTS];
    size_t run_size;
    struct kvm_run *run;
    char *ram;
};

/* Of <linux/fs.h> from 6.7 on. */
struct region { uint64_t start, end, categories; };
struct scan {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define SCAN _IOWR('f', 16, struct scan)
#define IS_FILE 4
#define IS_PRESENT 8

static int kvm, pagemap;
static struct cpuid cpuid;

static void supported_cpuid(void)
{
    cpuid.head.nent = 256;
    must(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid), "KVM_GET_SUPPORTED_CPUID");
}

/* Every interrupt goes to the IOAPIC alone; eventfds behind two of its pins, and for the queues. */
static void wire(struct vm *v)
{
    struct { struct kvm_irq_routing head; struct kvm_irq_routing_entry entries[PINS]; } routes;
    int i;
    memset(&routes, 0, sizeof routes);
    routes.head.nr = PINS;
    for (i = 0; i < PINS; i++) {
        routes.entries[i].gsi = i;
        routes.entries[i].type = KVM_IRQ_ROUTING_IRQCHIP;
        routes.entries[i].u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
        routes.entries[i].u.irqchip.pin = i;
    }
    must(ioctl(v->vm, KVM_SET_GSI_ROUTING, &routes), "KVM_SET_GSI_ROUTING");
    for (i = 0; i < EVENTS; i++)
        v->events[i] = must(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd");
    for (i = 0; i < 2; i++) {
        struct kvm_irqfd line = {.fd = v->events[1 + i], .gsi = i ? GED_GSI : COM1_GSI};
        must(ioctl(v->vm, KVM_IRQFD, &line), "KVM_IRQFD");
    }
}

/* RAM over `file`, private or shared; a VM with interrupt controllers and one vCPU. */
static struct vm create(int file, int kind)
{
    struct vm v;
    unsigned long identity = 0xf8003000;
    v.vm = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
    v.ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, kind | MAP_NORESERVE, file, 0);
    must(v.ram == MAP_FAILED ? -1 : 0, "mmap");
    struct kvm_userspace_memory_region region = {0, 0, 0, RAM, (unsigned long)v.ram};
    must(ioctl(v.vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
    must(ioctl(v.vm, KVM_SET_IDENTITY_MAP_ADDR, &identity), "KVM_SET_IDENTITY_MAP_ADDR");
    must(ioctl(v.vm, KVM_SET_TSS_ADDR, 0xf8000000), "KVM_SET_TSS_ADDR");
    must(ioctl(v.vm, KVM_CREATE_IRQCHIP, 0), "KVM_CREATE_IRQCHIP");
    wire(&v);
    v.vcpu = must(ioctl(v.vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
    v.run_size = must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
    v.run = mmap(NULL, v.run_size, PROT_READ | PROT_WRITE, MAP_SHARED, v.vcpu, 0);
    must(v.run == MAP_FAILED ? -1 : 0, "mmap of the vCPU");
    must(ioctl(v.vcpu, KVM_SET_CPUID2, &cpuid), "KVM_SET_CPUID2");
    return v;
}

static void destroy(struct vm *v)
{
    int i;
    for (i = 0; i < EVENTS; i++)
        close(v->events[i]);
    munmap(v->run, v->run_size);
    close(v->vcpu);
    close(v->vm);
    munmap(v->ram, RAM);
}

static void run(struct vm *v)
{
    must(ioctl(v->vcpu, KVM_RUN, 0), "KVM_RUN");
    if (v->run->exit_reason != KVM_EXIT_IO) {
        fprintf(stderr, "exit %u\n", v->run->exit_reason);
        exit(1);
    }
}

static void complete(struct vm *v)
{
    v->run->immediate_exit = 1;
    if (ioctl(v->vcpu, KVM_RUN, 0) != -1 || errno != EINTR)
        must(-1, "KVM_RUN to complete an exit");
    v->run->immediate_exit = 0;
}

#define VCPU_PARTS(X) \
    X(SREGS2, sregs) X(REGS, regs) X(XSAVE, xsave) X(XCRS, xcrs) X(LAPIC, lapic) X(MSRS, msrs) \
    X(VCPU_EVENTS, events) X(MP_STATE, mp_state) X(DEBUGREGS, debugregs)

static void capture(struct vm *v, struct state *s)
{
    struct { struct kvm_msr_list head; uint32_t indices[1024]; } list;
    uint32_t i, kept = 0;
    complete(v);
    list.head.nmsrs = 1024;
    must(ioctl(kvm, KVM_GET_MSR_INDEX_LIST, &list), "KVM_GET_MSR_INDEX_LIST");
    for (i = 0; i < list.head.nmsrs; i++) {
        s->msrs.head.nmsrs = 1;
        s->msrs.entries[0].index = list.indices[i];
        if (list.indices[i] >> 9 != 0x40000000 >> 9 &&
            ioctl(v->vcpu, KVM_GET_MSRS, &s->msrs) == 1)
            list.indices[kept++] = list.indices[i];
    }
    for (i = 0; i < kept; i++)
        s->msrs.entries[i].index = list.indices[i];
    s->msrs.head.nmsrs = kept;
#define GET(name, field) must(ioctl(v->vcpu, KVM_GET_##name, &s->field), "KVM_GET_" #name);
    VCPU_PARTS(GET)
    for (i = 0; i < 3; i++) {
        s->chips[i].chip_id = i;
        must(ioctl(v->vm, KVM_GET_IRQCHIP, &s->chips[i]), "KVM_GET_IRQCHIP");
    }
    must(ioctl(v->vm, KVM_GET_CLOCK, &s->clock), "KVM_GET_CLOCK");
    s->clock.flags = 0;
}

static void apply(struct vm *v, struct state *s)
{
    int i;
#define SET(name, field) must(ioctl(v->vcpu, KVM_SET_##name, &s->field), "KVM_SET_" #name);
    VCPU_PARTS(SET)
    for (i = 0; i < 3; i++)
        must(ioctl(v->vm, KVM_SET_IRQCHIP, &s->chips[i]), "KVM_SET_IRQCHIP");
    must(ioctl(v->vm, KVM_SET_CLOCK, &s->clock), "KVM_SET_CLOCK");
}

/* Pages of the guest's own go back to what the file has. */
static void put_back(struct vm *v, const char *frozen)
{
    struct region found[RAM / PAGE / 2];
    struct scan scan = {
        .size = sizeof scan, .start = (unsigned long)v->ram, .end = (unsigned long)v->ram + RAM,
        .vec = (unsigned long)found, .vec_len = RAM / PAGE / 2, .category_inverted = IS_FILE,
        .category_mask = IS_FILE, .category_anyof_mask = IS_PRESENT, .return_mask = IS_FILE,
    };
    int i, count = ioctl(pagemap, SCAN, &scan);
    if (count < 0) {
        /* A kernel before 6.7: the pages that it is known to have written. */
        memcpy(v->ram + TOUCHED_GPA, frozen + TOUCHED_GPA, PAGES * PAGE);
        return;
    }
    for (i = 0; i < count; i++)
        memcpy((void *)found[i].start, frozen + (found[i].start - (unsigned long)v->ram),
               found[i].end - found[i].start);
}

static void own_id(struct vm *v)
{
    must(getrandom(v->ram + VMGENID_GPA, 16, 0), "getrandom");
}

int main(int argc, char **argv)
{
    int i, rounds = argc == 3 ? atoi(argv[2]) : 0;
    int file = must(memfd_create("ram", MFD_CLOEXEC | MFD_ALLOW_SEALING), "memfd_create");
    double started, *times = calloc(rounds + 1, sizeof *times);
    static struct state state;
    struct vm parent, child, *children = calloc(rounds + 1, sizeof *children);
    char *frozen;
    if (rounds < 1)
        return 2;
    must(ftruncate(file, RAM), "ftruncate");
    must(pwrite(file, code, sizeof code, CODE_GPA), "the guest's code");
    kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
    pagemap = must(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC), "/proc/self/pagemap");
    supported_cpuid();
    parent = create(file, MAP_PRIVATE);
    registers(parent.vcpu, CODE_GPA);
    run(&parent);
    capture(&parent, &state);
    frozen = mmap(NULL, RAM, PROT_READ, MAP_SHARED, file, 0);
    must(frozen == MAP_FAILED ? -1 : 0, "mmap");
    for (i = 0; i < rounds; i++) {
        started = now();
        if (!strcmp(argv[1], "restore")) {
            put_back(&parent, frozen);
            if (i)
                complete(&parent);
            apply(&parent, &state);
            run(&parent);
            times[i] = now() - started;
            continue;
        }
        if (!strcmp(argv[1], "new")) {
            close(kvm);
            kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
            supported_cpuid();
        }
        child = create(file, MAP_PRIVATE);
        if (!strcmp(argv[1], "new"))
            registers(child.vcpu, CODE_GPA);
        else {
            apply(&child, &state);
            own_id(&child);
        }
        run(&child);
        times[i] = now() - started;
        children[i] = child;
    }
    /* Threads of the kernel's take a closed VM apart: the next one would wait for them. */
    for (i = 0; i < rounds && children[i].run; i++)
        destroy(&children[i]);
    for (i = 0; i < rounds; i++)
        printf("%.1f\n", times[i]);
    return 0;
}
