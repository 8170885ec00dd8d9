# <linux/kvm.h>, extern only: the structures and numbers used, no logic.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, int32_t

cdef extern from "<linux/kvm.h>" nogil:
    unsigned long KVM_GET_API_VERSION, KVM_CREATE_VM, KVM_CHECK_EXTENSION
    unsigned long KVM_GET_VCPU_MMAP_SIZE, KVM_GET_SUPPORTED_CPUID, KVM_CREATE_VCPU
    unsigned long KVM_SET_USER_MEMORY_REGION, KVM_SET_TSS_ADDR, KVM_SET_IDENTITY_MAP_ADDR
    unsigned long KVM_CREATE_IRQCHIP, KVM_SET_GSI_ROUTING, KVM_IRQFD, KVM_IOEVENTFD
    unsigned long KVM_ENABLE_CAP, KVM_SIGNAL_MSI, KVM_IRQ_LINE, KVM_X86_SET_MSR_FILTER
    unsigned long KVM_CREATE_DEVICE, KVM_SET_DEVICE_ATTR
    enum: KVM_API_VERSION
    int KVM_DEV_TYPE_VFIO, KVM_DEV_VFIO_GROUP, KVM_DEV_VFIO_GROUP_ADD, KVM_DEV_VFIO_GROUP_DEL

    struct kvm_create_device:
        uint32_t type
        uint32_t fd
        uint32_t flags

    struct kvm_device_attr:
        uint32_t flags
        uint32_t group
        uint64_t attr
        uint64_t addr
    unsigned long KVM_RUN, KVM_GET_REGS, KVM_SET_REGS, KVM_GET_SREGS, KVM_SET_SREGS
    unsigned long KVM_SET_FPU, KVM_SET_CPUID2, KVM_SET_MSRS, KVM_GET_MSRS
    unsigned long KVM_GET_XSAVE, KVM_SET_XSAVE
    unsigned long KVM_GET_LAPIC, KVM_SET_LAPIC, KVM_GET_TSC_KHZ, KVM_GET_MP_STATE
    unsigned long KVM_SET_SIGNAL_MASK, KVM_SET_GUEST_DEBUG, KVM_TRANSLATE, KVM_KVMCLOCK_CTRL

    int KVM_EXIT_UNKNOWN, KVM_EXIT_EXCEPTION, KVM_EXIT_IO, KVM_EXIT_HYPERCALL, KVM_EXIT_DEBUG
    int KVM_EXIT_HLT, KVM_EXIT_MMIO, KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_SHUTDOWN
    int KVM_EXIT_FAIL_ENTRY, KVM_EXIT_INTR, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_SYSTEM_EVENT
    int KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR
    int KVM_EXIT_IO_IN, KVM_EXIT_IO_OUT
    int KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC
    int KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE
    int KVM_IOEVENTFD_FLAG_DEASSIGN
    int KVM_CAP_NR_VCPUS, KVM_CAP_MAX_VCPUS, KVM_CAP_MAX_VCPU_ID, KVM_CAP_X2APIC_API
    int KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP
    int KVM_CAP_SYNC_REGS, KVM_SYNC_X86_REGS
    unsigned long KVM_GET_STATS_FD
    int KVM_GUESTDBG_USE_SW_BP, KVM_GUESTDBG_INJECT_BP, KVM_GUESTDBG_BLOCKIRQ

    int KVM_CAP_X86_USER_SPACE_MSR, KVM_CAP_X86_MSR_FILTER, KVM_MSR_EXIT_REASON_FILTER
    int KVM_MSR_FILTER_READ, KVM_MSR_FILTER_WRITE, KVM_MSR_FILTER_DEFAULT_ALLOW
    enum: KVM_MSR_FILTER_MAX_RANGES, KVM_MSR_FILTER_MAX_BITMAP_SIZE

    struct kvm_msr_filter_range:
        uint32_t flags
        uint32_t nmsrs
        uint32_t base
        uint8_t *bitmap

    struct kvm_msr_filter:
        uint32_t flags
        kvm_msr_filter_range ranges[16]

    unsigned long KVM_REGISTER_COALESCED_MMIO
    int KVM_CAP_COALESCED_MMIO, KVM_CAP_COALESCED_PIO

    struct kvm_coalesced_mmio_zone:
        uint64_t addr
        uint32_t size
        uint32_t pio

    struct kvm_coalesced_mmio:
        uint64_t phys_addr
        uint32_t len
        uint32_t pio
        uint8_t data[8]

    struct kvm_coalesced_mmio_ring:
        uint32_t first
        uint32_t last
        kvm_coalesced_mmio coalesced_mmio[0]

    struct kvm_irq_level:
        uint32_t irq
        uint32_t level

    struct kvm_userspace_memory_region:
        uint32_t slot
        uint32_t flags
        uint64_t guest_phys_addr
        uint64_t memory_size
        uint64_t userspace_addr

    struct kvm_cpuid_entry2:
        uint32_t function
        uint32_t index
        uint32_t flags
        uint32_t eax
        uint32_t ebx
        uint32_t ecx
        uint32_t edx

    struct kvm_cpuid2:
        uint32_t nent
        kvm_cpuid_entry2 *entries

    struct kvm_msr_entry:
        uint32_t index
        uint64_t data

    struct kvm_msrs:
        uint32_t nmsrs
        kvm_msr_entry *entries

    struct kvm_irq_routing_irqchip:
        uint32_t irqchip
        uint32_t pin

    struct kvm_irq_routing_msi:
        uint32_t address_lo
        uint32_t address_hi
        uint32_t data

    union kvm_irq_routing_u "":
        kvm_irq_routing_irqchip irqchip
        kvm_irq_routing_msi msi

    struct kvm_irq_routing_entry:
        uint32_t gsi
        uint32_t type
        uint32_t flags
        kvm_irq_routing_u u

    struct kvm_irq_routing:
        uint32_t nr
        kvm_irq_routing_entry *entries

    struct kvm_irqfd:
        uint32_t fd
        uint32_t gsi
        uint32_t flags
        uint32_t resamplefd

    struct kvm_ioeventfd:
        uint64_t datamatch
        uint64_t addr
        uint32_t len
        int32_t fd
        uint32_t flags

    struct kvm_enable_cap:
        uint32_t cap
        uint32_t flags
        uint64_t args[4]

    struct kvm_segment:
        uint64_t base
        uint32_t limit
        uint16_t selector
        uint8_t type
        uint8_t present, dpl, db, s, l, g, avl, unusable

    struct kvm_dtable:
        uint64_t base
        uint16_t limit

    struct kvm_sregs:
        kvm_segment cs, ds, es, fs, gs, ss, tr, ldt
        kvm_dtable gdt, idt
        uint64_t cr0, cr2, cr3, cr4, cr8, efer, apic_base
        uint64_t interrupt_bitmap[4]

    struct kvm_regs:
        uint64_t rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp
        uint64_t r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags

    struct kvm_sync_regs:
        kvm_regs regs

    union kvm_run_s "":
        kvm_sync_regs regs

    struct kvm_fpu:
        uint16_t fcw
        uint32_t mxcsr

    struct kvm_lapic_state:
        char regs[1024]

    struct kvm_mp_state:
        uint32_t mp_state

    struct kvm_translation:
        uint64_t linear_address
        uint64_t physical_address
        uint8_t valid

    struct kvm_signal_mask:
        uint32_t len
        uint8_t *sigset

    struct kvm_run_io "":
        uint8_t direction
        uint8_t size
        uint16_t port
        uint32_t count
        uint64_t data_offset

    struct kvm_run_mmio "":
        uint64_t phys_addr
        uint8_t data[8]
        uint32_t len
        uint8_t is_write

    struct kvm_run_internal "":
        uint32_t suberror
        uint32_t ndata
        uint64_t data[16]

    struct kvm_run_fail_entry "":
        uint64_t hardware_entry_failure_reason
        uint32_t cpu

    struct kvm_debug_exit_arch:
        uint32_t exception
        uint64_t pc
        uint64_t dr6
        uint64_t dr7

    struct kvm_run_debug "":
        kvm_debug_exit_arch arch

    struct kvm_guest_debug_arch:
        uint64_t debugreg[8]

    struct kvm_guest_debug:
        uint32_t control
        kvm_guest_debug_arch arch

    struct kvm_run_msr "":
        uint8_t error
        uint32_t reason
        uint32_t index
        uint64_t data

    struct kvm_run_system_event "":
        uint32_t type

    struct kvm_run:
        uint8_t request_interrupt_window
        uint8_t immediate_exit
        uint32_t exit_reason
        kvm_run_io io
        kvm_run_mmio mmio
        kvm_run_internal internal
        kvm_run_fail_entry fail_entry
        kvm_run_debug debug
        kvm_run_msr msr
        kvm_run_system_event system_event
        uint64_t kvm_valid_regs
        kvm_run_s s
