# <linux/kvm.h>, extern only: what a saved VM is made of.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from vmm._native.linux.kvm cimport kvm_dtable, kvm_segment

cdef extern from "<linux/kvm.h>" nogil:
    unsigned long KVM_GET_SREGS2, KVM_SET_SREGS2, KVM_GET_XCRS, KVM_SET_XCRS
    unsigned long KVM_GET_XSAVE, KVM_GET_XSAVE2, KVM_SET_XSAVE, KVM_SET_MP_STATE
    unsigned long KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS
    unsigned long KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS
    unsigned long KVM_GET_CPUID2, KVM_SET_TSC_KHZ
    unsigned long KVM_GET_IRQCHIP, KVM_SET_IRQCHIP, KVM_GET_CLOCK, KVM_SET_CLOCK
    unsigned long KVM_GET_MSR_INDEX_LIST
    int KVM_CAP_XSAVE2, KVM_CLOCK_REALTIME, KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR

    struct kvm_sregs2:
        kvm_segment cs, ds, es, fs, gs, ss, tr, ldt
        kvm_dtable gdt, idt
        uint64_t cr0, cr2, cr3, cr4, cr8, efer, apic_base, flags

    struct kvm_xcrs:
        uint32_t nr_xcrs

    struct kvm_events_exception "":
        uint8_t injected, nr, has_error_code, pending
        uint32_t error_code

    struct kvm_events_interrupt "":
        uint8_t injected, nr, soft, shadow

    struct kvm_events_nmi "":
        uint8_t injected, pending, masked

    struct kvm_vcpu_events:
        kvm_events_exception exception
        kvm_events_interrupt interrupt
        kvm_events_nmi nmi
        uint32_t flags

    struct kvm_debugregs:
        uint64_t dr7

    union kvm_ioapic_redirect "":
        uint64_t bits

    struct kvm_ioapic_state:
        kvm_ioapic_redirect redirtbl[24]

    union kvm_irqchip_chip "":
        char dummy[512]
        kvm_ioapic_state ioapic

    struct kvm_irqchip:
        uint32_t chip_id
        kvm_irqchip_chip chip

    struct kvm_clock_data:
        uint64_t clock
        uint32_t flags
        uint64_t realtime
        uint64_t host_tsc

    struct kvm_msr_list:
        uint32_t nmsrs
        uint32_t *indices
