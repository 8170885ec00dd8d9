"""All that KVM keeps of one vCPU, in one object: captured, applied, and as plain numbers and bytes.

Any thread may call, as long as the vCPU is not inside KVM_RUN, and its last exit is complete: see
settle(). Source: Documentation/virt/kvm/api.rst; the order of writing is QEMU's
(target/i386/kvm/kvm.c, kvm_arch_put_registers): segments before the LAPIC, whose base they hold;
the LAPIC before the MSRs, one of which arms its timer; general registers before the events, which
they would drop.
"""

from libc.errno cimport EINTR, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memmove

from vmm._native.host.fd cimport check
from vmm._native.host.fd import IoctlError
from vmm._native.kvm.vcpu cimport (
    CPUID_MAX, VcpuFd, cpuid_of, packed_cpuid, set_packed_cpuid,
)
from vmm._native.kvm.vcpuplain import VERSION, check_keys, checked_row, key_of
from vmm._native.linux.kvm cimport *
from vmm._native.linux.kvm_state cimport *

cdef extern from *:
    """
    #include <linux/kvm.h>
    /* Registers that KVM_RUN leaves in the shared page when asked (api.rst, 5: kvm_valid_regs). */
    static void vmm_want_sregs(struct kvm_run *run, int on) {
        run->kvm_valid_regs = on ? KVM_SYNC_X86_SREGS : 0;
    }
    static unsigned long long vmm_left_cr0(struct kvm_run *run) { return run->s.regs.sregs.cr0; }
    """
    void vmm_want_sregs(kvm_run *run, int on) nogil
    uint64_t vmm_left_cr0(kvm_run *run) nogil

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)

cdef uint64_t NO_CR0 = ~<uint64_t>0
cdef uint64_t CR0_PG = 1 << 31

cdef enum:
    IA32_TSC = 0x10
    CR4_VMXE = 1 << 13
    EFER_SVME = 1 << 12
    PARTS = 8
    FIRST_AFTER_MSRS = 5
    FRAGMENTS_MAX = 64           # exits that one interrupted instruction may still make
    READ, WRITE

# Hyper-V's synthetic MSRs: KVM lists them for every guest, ours are never offered them by CPUID,
# and some cannot be written at all.
HYPERV_MSRS = range(0x40000000, 0x40000200)
# Refused with a value that differs from the vCPU's own, and no loss; all others are errors.
MAY_BE_LEFT_OUT = {
    0x8B: "IA32_BIOS_SIGN_ID: the microcode's revision, which is the host's",
    0xCE: "MSR_PLATFORM_INFO: what the host's processor is",
    0x10A: "IA32_ARCH_CAPABILITIES: what the host's processor is",
    0x345: "IA32_PERF_CAPABILITIES: what the host's processor is",
}


cdef struct Part:
    const char *name
    unsigned long get_request
    unsigned long set_request
    void *data
    size_t size


cdef Part part_of(VcpuState state, int number) noexcept nogil:
    """The parts in the order of writing; XSAVE's size is the host's."""
    cdef Parts *p = &state.parts
    if number == 0:
        return Part(b"SREGS2", KVM_GET_SREGS2, KVM_SET_SREGS2, &p.sregs2, sizeof(p.sregs2))
    if number == 1:
        return Part(b"REGS", KVM_GET_REGS, KVM_SET_REGS, &p.regs, sizeof(p.regs))
    if number == 2:
        return Part(b"XSAVE", KVM_GET_XSAVE2 if state.xsave_size > XSAVE_MIN else KVM_GET_XSAVE,
                    KVM_SET_XSAVE, state.xsave, state.xsave_size)
    if number == 3:
        return Part(b"XCRS", KVM_GET_XCRS, KVM_SET_XCRS, &p.xcrs, sizeof(p.xcrs))
    if number == 4:
        return Part(b"LAPIC", KVM_GET_LAPIC, KVM_SET_LAPIC, &p.lapic, sizeof(p.lapic))
    if number == 5:
        return Part(b"VCPU_EVENTS", KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS, &p.events,
                    sizeof(p.events))
    if number == 6:
        return Part(b"MP_STATE", KVM_GET_MP_STATE, KVM_SET_MP_STATE, &p.mp_state,
                    sizeof(p.mp_state))
    return Part(b"DEBUGREGS", KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS, &p.debugregs,
                sizeof(p.debugregs))


cdef object refusal(VcpuState state, int number, bint is_write):
    code = errno
    name = part_of(state, number).name.decode()
    return IoctlError(code, f"KVM_{'SET' if is_write else 'GET'}_{name}")


cdef bint is_pending(VcpuFd vcpu) noexcept nogil:
    """Whether the last exit waits for the next KVM_RUN to complete its instruction."""
    cdef uint32_t reason = vcpu.run.exit_reason
    return reason == <uint32_t>KVM_EXIT_IO or reason == <uint32_t>KVM_EXIT_MMIO or (
        reason == <uint32_t>KVM_EXIT_X86_RDMSR or reason == <uint32_t>KVM_EXIT_X86_WRMSR)


cdef int settle_exit(VcpuFd vcpu, uint64_t *cr0) noexcept nogil:
    """0: complete; 1: the instruction made another exit; -1: errno. ``cr0``: what it then is, where
    KVM had to be asked anyway."""
    cdef int rc
    if not is_pending(vcpu):
        return 0
    vmm_want_sregs(vcpu.run, cr0 != NULL)
    vcpu.run.immediate_exit = 1
    rc = ioctl(vcpu.fd, KVM_RUN, 0)
    vcpu.run.immediate_exit = 0
    if cr0 != NULL:
        cr0[0] = vmm_left_cr0(vcpu.run)
        vmm_want_sregs(vcpu.run, 0)
    if rc == 0:
        return 1
    if errno != EINTR:
        return -1
    # The kernel leaves the reason as it was: told apart from an exit not yet complete.
    vcpu.run.exit_reason = KVM_EXIT_INTR
    return 0


def settle(VcpuFd vcpu):
    """Complete the instruction of the last exit; False when it makes another exit instead.

    A port, MMIO or MSR exit is complete, and the registers true, only after the next KVM_RUN. On
    the thread that runs the vCPU: for another one the kernel waits for a grace period.
    """
    cdef int rc
    with nogil:
        rc = settle_exit(vcpu, NULL)
    check(rc, b"KVM_RUN")
    return rc == 0


def linear_rip(VcpuFd vcpu):
    """The linear address of the next instruction."""
    cdef kvm_regs regs
    cdef kvm_sregs2 sregs2
    cdef int rc
    with nogil:
        rc = ioctl(vcpu.fd, KVM_GET_REGS, &regs)
        rc = rc or ioctl(vcpu.fd, KVM_GET_SREGS2, &sregs2)
    check(rc, b"KVM_GET_REGS")
    return <uint64_t>(regs.rip + (0 if sregs2.cs.l else sregs2.cs.base))


cdef class VcpuState:
    """One vCPU's registers, LAPIC, events, MSRs, FPU, CPUID and TSC frequency, as KVM has them."""

    def __cinit__(self, size_t xsave_size):
        if not XSAVE_MIN <= xsave_size <= XSAVE_MAX:
            raise ValueError(f"an XSAVE area of {xsave_size} bytes: {XSAVE_MIN} to {XSAVE_MAX}")
        self.xsave_size = xsave_size
        self.xsave = <uint8_t *>calloc(1, xsave_size)
        self.msr_table = <kvm_msrs *>calloc(
            1, sizeof(uint32_t) * 2 + MSRS_MAX * sizeof(kvm_msr_entry))
        if self.xsave == NULL or self.msr_table == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.xsave)
        free(self.msr_table)

    @staticmethod
    def capture(VcpuFd vcpu, msr_indices, size_t xsave_size):
        """Read a vCPU for the first time. ``msr_indices``: KVM_GET_MSR_INDEX_LIST's.

        An MSR that KVM lists and then does not read is none of this guest's: KVM reads for us all
        that it lets a guest read.
        """
        cdef VcpuState state = VcpuState(xsave_size)
        wanted = [index for index in msr_indices if index not in HYPERV_MSRS]
        if len(wanted) > MSRS_MAX:
            raise ValueError(f"{len(wanted)} MSRs of one vCPU: at most {MSRS_MAX}")
        state.msr_table.nmsrs = len(wanted)
        for number, index in enumerate(wanted):
            state.msr_table.entries[<uint32_t>number].index = index
        state.cpuid = tuple(cpuid_of(vcpu.fd, KVM_GET_CPUID2, b"KVM_GET_CPUID2"))
        state.tsc_khz = check(ioctl(vcpu.fd, KVM_GET_TSC_KHZ, 0), b"KVM_GET_TSC_KHZ")
        state.read(vcpu)
        return state

    def capture_again(self, VcpuFd vcpu):
        """A new state of the same vCPU: CPUID and the list of MSRs stay what they are."""
        cdef VcpuState state = self.like()
        state.read(vcpu)
        return state

    cdef VcpuState like(self):
        """Another object with the same CPUID, TSC frequency and MSRs."""
        cdef VcpuState state = VcpuState(self.xsave_size)
        state.cpuid = self.cpuid
        state.packed = self.packed
        state.tsc_khz = self.tsc_khz
        state.is_khz_new = self.is_khz_new
        memcpy(state.msr_table, self.msr_table,
               sizeof(uint32_t) * 2 + self.msr_table.nmsrs * sizeof(kvm_msr_entry))
        return state

    def read(self, VcpuFd vcpu):
        """Take over all that changes while the vCPU runs; drops MSRs that KVM does not read."""
        cdef int failed
        cdef int done
        cdef kvm_msrs *table = self.msr_table
        cdef uint32_t first
        with nogil:
            failed = self.read_parts(vcpu.fd)
            done = ioctl(vcpu.fd, KVM_GET_MSRS, table) if failed < 0 else 0
        if failed >= 0:
            raise refusal(self, failed, False)
        while check(done, b"KVM_GET_MSRS") < <int>table.nmsrs:
            first = done
            table.nmsrs -= 1
            memmove(&table.entries[first], &table.entries[first + 1],
                    (table.nmsrs - first) * sizeof(kvm_msr_entry))
            done = ioctl(vcpu.fd, KVM_GET_MSRS, table)
        self.check_plain()

    cdef int read_parts(self, int fd) noexcept nogil:
        """-1 when all are read, else the number of the part that failed."""
        cdef int number
        cdef Part part
        # Reading MP_STATE takes INIT and start-up IPIs in, which changes the rest: so from behind.
        for number in range(PARTS - 2, -1, -1):
            part = part_of(self, number)
            if ioctl(fd, part.get_request, part.data) < 0:
                return number
        part = part_of(self, PARTS - 1)
        return PARTS - 1 if ioctl(fd, part.get_request, part.data) < 0 else -1

    cdef int check_plain(self) except -1:
        if self.parts.sregs2.cr4 & CR4_VMXE or self.parts.sregs2.efer & EFER_SVME:
            raise ValueError(
                "the guest runs a hypervisor of its own (VMX or SVM is on): its state cannot be "
                "taken; take the snapshot before that, or leave KVM out of the guest")
        return 0

    def apply(self, VcpuFd vcpu, bint look=False):
        """Give all of it to a vCPU; IoctlError names what KVM refuses, ValueError an MSR.

        With ``look`` the result is whether paging was on in the vCPU, or is now.
        """
        cdef uint64_t cr0 = NO_CR0 if look else 0
        cdef kvm_sregs2 before
        cdef int failed = 0
        cdef int done = 0
        cdef int fragments = 0
        with nogil:
            # What the old instruction would still do is gone with the old state.
            while settle_exit(vcpu, &cr0 if look else NULL) == 1 and fragments < FRAGMENTS_MAX:
                fragments += 1
            if cr0 == NO_CR0:
                cr0 = before.cr0 if ioctl(vcpu.fd, KVM_GET_SREGS2, &before) == 0 else CR0_PG
            failed = self.write_parts(vcpu.fd, 0, FIRST_AFTER_MSRS)
            if failed < 0:
                done = self.write_msrs(vcpu.fd, 0)
                if done == <int>self.msr_table.nmsrs:
                    failed = self.write_parts(vcpu.fd, FIRST_AFTER_MSRS, PARTS)
        if failed >= 0:
            raise refusal(self, failed, True)
        if done != <int>self.msr_table.nmsrs:
            self.apply_rest(vcpu, check(done, b"KVM_SET_MSRS"))
        return bool((cr0 | self.parts.sregs2.cr0) & CR0_PG)

    def apply_rest(self, VcpuFd vcpu, uint32_t done):
        """Go on behind MSR number ``done``, which KVM refused."""
        cdef int failed
        while done < self.msr_table.nmsrs:
            self.refused(vcpu.fd, done)
            done += 1
            done += check(self.write_msrs(vcpu.fd, done), b"KVM_SET_MSRS")
        failed = self.write_parts(vcpu.fd, FIRST_AFTER_MSRS, PARTS)
        if failed >= 0:
            raise refusal(self, failed, True)

    cdef int write_parts(self, int fd, int first, int end) noexcept nogil:
        cdef int number
        cdef Part part
        for number in range(first, end):
            part = part_of(self, number)
            if ioctl(fd, part.set_request, part.data) < 0:
                return number
        return -1

    cdef int write_msrs(self, int fd, uint32_t first) noexcept nogil:
        """How many of those from ``first`` on KVM took; it stops at one that it refuses."""
        cdef uint64_t buffer[1 + 2 * MSRS_MAX]      # a kvm_msrs with its entries of 16 bytes
        cdef kvm_msrs *table = self.msr_table
        if first >= table.nmsrs:
            return 0
        if first:
            table = <kvm_msrs *>buffer
            table.nmsrs = self.msr_table.nmsrs - first
            memcpy(table.entries, &self.msr_table.entries[first],
                   table.nmsrs * sizeof(kvm_msr_entry))
        return ioctl(fd, KVM_SET_MSRS, table)

    cdef int refused(self, int fd, uint32_t number) except -1:
        """Nothing is lost when the vCPU holds that value already; else the table must know it."""
        cdef uint64_t buffer[1 + 2]
        cdef kvm_msrs *one = <kvm_msrs *>buffer
        cdef kvm_msr_entry wanted = self.msr_table.entries[number]
        one.nmsrs = 1
        one.entries[0].index = wanted.index
        one.entries[0].data = 0
        read = ioctl(fd, KVM_GET_MSRS, one) == 1
        if read and one.entries[0].data == wanted.data or wanted.index in MAY_BE_LEFT_OUT:
            return 0
        found = f"holds {one.entries[0].data:#x}" if read else "does not have it"
        raise ValueError(
            f"KVM refuses the value {wanted.data:#x} for MSR {wanted.index:#x} of the saved vCPU "
            f"(this one {found}); use a host with the same processor and kernel")

    def set_cpuid(self, VcpuFd vcpu):
        """CPUID, and the TSC's frequency where it is not the same: for a new vCPU, before apply."""
        if self.packed is None:
            self.packed = packed_cpuid(self.cpuid)
        set_packed_cpuid(vcpu.fd, self.packed)
        # What a new vCPU of this host has does not change.
        if self.is_khz_new:
            return
        if vcpu.get_tsc_khz() == self.tsc_khz:
            self.is_khz_new = True
        else:
            check(ioctl(vcpu.fd, KVM_SET_TSC_KHZ, <unsigned long>self.tsc_khz), b"KVM_SET_TSC_KHZ")

    def advance_tsc(self, uint64_t ns):
        """Move the TSC on, as if the vCPU had stood still for so many nanoseconds."""
        cdef uint32_t i
        for i in range(self.msr_table.nmsrs):
            if self.msr_table.entries[i].index == IA32_TSC:
                value = self.msr_table.entries[i].data + ns * self.tsc_khz // 1_000_000
                self.msr_table.entries[i].data = value & 0xFFFFFFFFFFFFFFFF

    def copy(self):
        """Another object with the same values."""
        cdef VcpuState new = self.like()
        new.parts = self.parts
        memcpy(new.xsave, self.xsave, self.xsave_size)
        return new

    @property
    def msrs(self):
        """(index, value) of each MSR."""
        return [(self.msr_table.entries[i].index, self.msr_table.entries[i].data)
                for i in range(self.msr_table.nmsrs)]

    def to_state(self):
        """All of it as a dict of ints, bytes and tuples of ints."""
        state = {"version": VERSION, "msrs": self.msrs, "cpuid": list(self.cpuid),
                 "tsc_khz": self.tsc_khz}
        for number in range(PARTS):
            part = part_of(self, number)
            state[key_of(part.name.decode())] = (<char *>part.data)[:part.size]
        return state

    @staticmethod
    def from_state(state):
        """The object of a dict of to_state(); ValueError names what is wrong with it."""
        check_keys(state, MSRS_MAX, CPUID_MAX)
        cdef VcpuState new = VcpuState(len(state["xsave"]))
        cdef bytes content
        for number in range(PARTS):
            part = part_of(new, number)
            content = state[key_of(part.name.decode())]
            if <size_t>len(content) != part.size:
                raise ValueError(f"vCPU state: {key_of(part.name.decode())} has {len(content)} "
                                 f"bytes, {part.size} are needed")
            memcpy(part.data, <const char *>content, part.size)
        new.fill_msrs(state["msrs"])
        new.cpuid = tuple(checked_row(row, 7, 32, "cpuid") for row in state["cpuid"])
        new.tsc_khz = state["tsc_khz"]
        new.check_plain()
        return new

    def fill_msrs(self, pairs):
        """The MSRs of a saved state."""
        cdef uint32_t count = 0
        for index, value in (checked_row(row, 2, 64, "msrs") for row in pairs):
            if index >> 32:
                raise ValueError(f"vCPU state: {index:#x} is no MSR")
            self.msr_table.entries[count].index = index
            self.msr_table.entries[count].data = value
            count += 1
        self.msr_table.nmsrs = count
