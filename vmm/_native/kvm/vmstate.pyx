"""What KVM keeps of a VM beside its vCPUs: the 8259 pair, the IOAPIC and the guest's clock.

Any thread may call while no vCPU runs. Source: Documentation/virt/kvm/api.rst, 4.25
(KVM_GET_IRQCHIP), 4.29 (KVM_GET_CLOCK).
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from vmm._native.host.fd cimport check
from vmm._native.kvm.vm cimport Kvm, VmFd
from vmm._native.linux.kvm cimport *
from vmm._native.linux.kvm_state cimport *

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int CLOCK_REALTIME
    int clock_gettime(int clock, timespec *ts)

cdef enum:
    CHIPS = 3                    # KVM_IRQCHIP_PIC_MASTER, _PIC_SLAVE, _IOAPIC
    IOAPIC = 2
    IOAPIC_PINS = 24             # KVM_IOAPIC_NUM_PINS
    MASKED = 1 << 16             # of a redirection table's entry
    MSR_LIST_MAX = 1024

CHIP_NAMES = ("pic_master", "pic_slave", "ioapic")
VERSION = 1


def msr_index_list(Kvm kvm):
    """KVM_GET_MSR_INDEX_LIST: the MSRs that may have to be saved, as a tuple."""
    cdef uint32_t buffer[1 + MSR_LIST_MAX]
    cdef kvm_msr_list *table = <kvm_msr_list *>buffer
    table.nmsrs = MSR_LIST_MAX
    check(ioctl(kvm.fd, KVM_GET_MSR_INDEX_LIST, table), b"KVM_GET_MSR_INDEX_LIST")
    return tuple([table.indices[i] for i in range(table.nmsrs)])


def xsave_size(VmFd vm):
    """Bytes of a vCPU's XSAVE area on this host, at least 4096."""
    return max(4096, check(ioctl(vm.fd, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2),
                           b"KVM_CHECK_EXTENSION"))


cdef class VmState:
    """``clock_ns``: the guest's clock; ``realtime_ns``: the host's time of day at that moment."""

    cdef kvm_irqchip chips[CHIPS]
    cdef readonly uint64_t clock_ns
    cdef readonly uint64_t realtime_ns

    def __cinit__(self):
        memset(self.chips, 0, sizeof(self.chips))
        for i in range(CHIPS):
            self.chips[i].chip_id = i

    @staticmethod
    def capture(VmFd vm):
        """Read it from a VM with interrupt controllers in the kernel."""
        cdef VmState state = VmState()
        cdef kvm_clock_data clock
        cdef timespec now
        cdef int i
        cdef int rc = 0
        memset(&clock, 0, sizeof(clock))
        with nogil:
            for i in range(CHIPS):
                rc = rc or ioctl(vm.fd, KVM_GET_IRQCHIP, &state.chips[i])
        check(rc, b"KVM_GET_IRQCHIP")
        check(ioctl(vm.fd, KVM_GET_CLOCK, &clock), b"KVM_GET_CLOCK")
        state.clock_ns = clock.clock
        state.realtime_ns = clock.realtime
        if not clock.flags & KVM_CLOCK_REALTIME:
            # Without a stable TSC KVM does not tell; between the two calls is a microsecond.
            clock_gettime(CLOCK_REALTIME, &now)
            state.realtime_ns = now.tv_sec * 1_000_000_000ULL + now.tv_nsec
        return state

    def apply(self, VmFd vm, uint64_t ahead_ns=0):
        """Write it to a VM; the clock goes on ``ahead_ns`` later than it stood."""
        cdef kvm_clock_data clock
        cdef int i
        cdef int rc = 0
        memset(&clock, 0, sizeof(clock))
        clock.clock = self.clock_ns + ahead_ns
        with nogil:
            for i in range(CHIPS):
                rc = rc or ioctl(vm.fd, KVM_SET_IRQCHIP, &self.chips[i])
        check(rc, b"KVM_SET_IRQCHIP")
        check(ioctl(vm.fd, KVM_SET_CLOCK, &clock), b"KVM_SET_CLOCK")

    def pin_open(self, int pin):
        """Whether the guest lets interrupts of that IOAPIC pin through."""
        cdef uint64_t entry
        if not 0 <= pin < IOAPIC_PINS:
            raise ValueError(f"the IOAPIC has no pin {pin}")
        entry = self.chips[IOAPIC].chip.ioapic.redirtbl[pin].bits
        return not entry & MASKED

    def to_state(self):
        """All of it as a dict of ints and bytes."""
        state = {"version": VERSION, "clock_ns": self.clock_ns, "realtime_ns": self.realtime_ns}
        for i, name in enumerate(CHIP_NAMES):
            state[name] = (<char *>&self.chips[<int>i])[:sizeof(kvm_irqchip)]
        return state

    @staticmethod
    def from_state(state):
        """The object of a dict of to_state(); ValueError names what is wrong with it."""
        cdef VmState new = VmState()
        cdef bytes content
        if not isinstance(state, dict) or state.get("version") != VERSION:
            raise ValueError(f"VM state: version {VERSION} is needed")
        if state.keys() != {"version", "clock_ns", "realtime_ns", *CHIP_NAMES}:
            raise ValueError(f"VM state: the keys {', '.join(map(str, sorted(state)))} are not "
                             "those of a VM")
        for i, name in enumerate(CHIP_NAMES):
            content = checked_chip(name, state[name])
            memcpy(&new.chips[<int>i], <const char *>content, sizeof(kvm_irqchip))
            # Which chip it is, is ours to say.
            new.chips[<int>i].chip_id = i
        new.clock_ns = checked_ns(state, "clock_ns")
        new.realtime_ns = checked_ns(state, "realtime_ns")
        return new


def checked_chip(name, content):
    """The bytes of one interrupt controller."""
    if not isinstance(content, bytes) or len(content) != sizeof(kvm_irqchip):
        raise ValueError(f"VM state: {name} must have {sizeof(kvm_irqchip)} bytes")
    return content


def checked_ns(state, key):
    """A time in nanoseconds."""
    value = state[key]
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"VM state: {key}={str(value)[:40]} is no time in nanoseconds")
    return value
