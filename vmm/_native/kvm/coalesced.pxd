"""Port writes that KVM keeps back for the next exit (KVM_CAP_COALESCED_PIO).

One ring a VM, which every vCPU's mapping shows. Source: Documentation/virt/kvm/api.rst, 4.116
(KVM_(UN)REGISTER_COALESCED_MMIO); virt/kvm/coalesced_mmio.c.
"""

from libc.stdint cimport uint8_t, uint32_t

from vmm._native.kvm.bus cimport Bus
from vmm._native.linux.kvm cimport kvm_coalesced_mmio_ring, kvm_run

cdef extern from *:
    """
    #include <linux/kvm.h>
    /* KVM_COALESCED_MMIO_MAX, whose PAGE_SIZE the header leaves to others. */
    #define VMM_COALESCED_MAX \\
        ((4096 - sizeof(struct kvm_coalesced_mmio_ring)) / sizeof(struct kvm_coalesced_mmio))
    static inline uint32_t vmm_ring_index(uint32_t *index) {
        return __atomic_load_n(index, __ATOMIC_ACQUIRE) % VMM_COALESCED_MAX;
    }
    static inline void vmm_ring_taken(struct kvm_coalesced_mmio_ring *ring, uint32_t at) {
        __atomic_store_n(&ring->first, (at + 1) % VMM_COALESCED_MAX, __ATOMIC_RELEASE);
    }
    static inline void vmm_ring_lock(int *lock) {
        while (__atomic_exchange_n(lock, 1, __ATOMIC_ACQUIRE))
            __builtin_ia32_pause();
    }
    static inline void vmm_ring_unlock(int *lock) {
        __atomic_store_n(lock, 0, __ATOMIC_RELEASE);
    }
    """
    uint32_t vmm_ring_index(uint32_t *index) nogil
    void vmm_ring_taken(kvm_coalesced_mmio_ring *ring, uint32_t at) nogil
    void vmm_ring_lock(int *lock) nogil
    void vmm_ring_unlock(int *lock) nogil


# Before a port access of this vCPU is served: what was written earlier arrives first. What another
# vCPU is just bringing there is waited for, since it may be this one's; what comes meanwhile is
# not, so that no guest keeps us here.
cdef inline void bring_writes(kvm_run *run, Bus pio) noexcept nogil:
    # SAFETY: Vm.keep_writes() has set ring_offset after it saw that the mapping reaches beyond that
    # page, and only the kernel writes there, besides `first`.
    cdef kvm_coalesced_mmio_ring *ring = <kvm_coalesced_mmio_ring *>(
        <uint8_t *>run + pio.ring_offset)
    cdef uint32_t at, end = vmm_ring_index(&ring.last)
    if vmm_ring_index(&ring.first) == end:
        return
    vmm_ring_lock(&pio.ring_lock)
    at = vmm_ring_index(&ring.first)
    end = vmm_ring_index(&ring.last)
    while at != end:
        pio.access(ring.coalesced_mmio[at].phys_addr, ring.coalesced_mmio[at].data,
                   ring.coalesced_mmio[at].len, 1)
        vmm_ring_taken(ring, at)
        at = vmm_ring_index(&ring.first)
    vmm_ring_unlock(&pio.ring_lock)
