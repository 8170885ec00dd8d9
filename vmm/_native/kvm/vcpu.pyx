"""A vCPU without policy: a method has the lower-case name of its ioctl, without ``KVM_``.

Every method may be called from any thread; it waits for a KVM_RUN in progress on the same vCPU.
Failures raise IoctlError with the ioctl's name. Source: Documentation/virt/kvm/api.rst.
"""

from libc.errno cimport E2BIG, EINVAL, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from posix.types cimport off_t

from vmm._native.host.fd cimport OwnedFd, check
from vmm._native.host.fd import IoctlError
from vmm._native.linux.kvm cimport *
from vmm._native.linux.kvm_state cimport (
    KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS, kvm_vcpu_events,
)

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)

cdef extern from "<sys/mman.h>" nogil:
    int PROT_READ, PROT_WRITE, MAP_SHARED
    void *MAP_FAILED
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
    int munmap(void *addr, size_t length)

cdef enum:
    MSRS_MAX = 64
    XSAVE_BYTES = 4096           # struct kvm_xsave without extensions that nobody has asked for

EXIT_NAMES = {
    KVM_EXIT_UNKNOWN: "unknown", KVM_EXIT_EXCEPTION: "exception", KVM_EXIT_IO: "io",
    KVM_EXIT_HYPERCALL: "hypercall", KVM_EXIT_DEBUG: "debug", KVM_EXIT_HLT: "hlt",
    KVM_EXIT_MMIO: "mmio", KVM_EXIT_IRQ_WINDOW_OPEN: "irq_window_open",
    KVM_EXIT_SHUTDOWN: "shutdown", KVM_EXIT_FAIL_ENTRY: "fail_entry", KVM_EXIT_INTR: "intr",
    KVM_EXIT_INTERNAL_ERROR: "internal_error", KVM_EXIT_SYSTEM_EVENT: "system_event",
    KVM_EXIT_X86_RDMSR: "rdmsr", KVM_EXIT_X86_WRMSR: "wrmsr",
}

SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")


cdef void read_segment(kvm_segment *segment, dict out) except *:
    out.update(base=segment.base, limit=segment.limit, selector=segment.selector,
               type=segment.type, present=segment.present, dpl=segment.dpl, db=segment.db,
               s=segment.s, l=segment.l, g=segment.g, avl=segment.avl)


cdef void write_segment(kvm_segment *segment, dict values) except *:
    memset(segment, 0, sizeof(kvm_segment))
    segment.base = values["base"]
    segment.limit = values["limit"]
    segment.selector = values["selector"]
    segment.type = values["type"]
    segment.present = values["present"]
    segment.dpl = values["dpl"]
    segment.db = values["db"]
    segment.s = values["s"]
    segment.l = values["l"]
    segment.g = values["g"]
    segment.avl = values["avl"]
    segment.unusable = 0 if values["present"] else 1


cdef int fill_debug(kvm_guest_debug *debug, bint step, breakpoints, bint software,
                    bint block_irq) except -1:
    cdef int i = 0
    memset(debug, 0, sizeof(debug[0]))
    if step or breakpoints or software:
        debug.control = KVM_GUESTDBG_ENABLE
    if step:
        debug.control |= KVM_GUESTDBG_SINGLESTEP
    if software:
        debug.control |= KVM_GUESTDBG_USE_SW_BP
    if block_irq:
        debug.control |= KVM_GUESTDBG_BLOCKIRQ
    if len(breakpoints) > 4:
        raise ValueError(f"{len(breakpoints)} hardware breakpoints: a CPU has 4")
    for address, kind, length in breakpoints:
        debug.control |= KVM_GUESTDBG_USE_HW_BP
        debug.arch.debugreg[i] = address
        debug.arch.debugreg[7] |= <uint64_t>2 << 2 * i | <uint64_t>kind << 16 + 4 * i
        debug.arch.debugreg[7] |= <uint64_t>length << 18 + 4 * i
        i += 1
    if i:
        debug.arch.debugreg[7] |= 0x700         # GE, LE and the bit that is always set
    return 0


cdef class VcpuFd(OwnedFd):
    """One virtual CPU and its shared kvm_run page."""

    def __cinit__(self, int fd, int index, size_t mmap_size):
        self.index = index
        self.run_size = mmap_size
        self.run = <kvm_run *>mmap(NULL, mmap_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
        if <void *>self.run == MAP_FAILED:
            self.run = NULL
            check(-1, b"mmap of kvm_run")

    def __dealloc__(self):
        if self.run != NULL:
            munmap(self.run, self.run_size)
            self.run = NULL

    cpdef void close(self):
        """Unmap kvm_run and close; the vCPU must not be running."""
        if self.run != NULL:
            munmap(self.run, self.run_size)
            self.run = NULL
        OwnedFd.close(self)

    def exit_text(self):
        """What the kernel said of the newest exit, as text."""
        cdef kvm_run *run = self.run
        if run.exit_reason == KVM_EXIT_INTERNAL_ERROR:
            words = [f"{run.internal.data[i]:#x}" for i in range(min(run.internal.ndata, 16))]
            return f"KVM internal error, suberror {run.internal.suberror}, data {' '.join(words)}"
        if run.exit_reason == KVM_EXIT_FAIL_ENTRY:
            return (f"VM entry failed, hardware reason "
                    f"{run.fail_entry.hardware_entry_failure_reason:#x}")
        if run.exit_reason == KVM_EXIT_SYSTEM_EVENT:
            return f"system event {run.system_event.type}"
        return EXIT_NAMES.get(run.exit_reason, f"exit reason {run.exit_reason}")

    def get_regs(self):
        """General registers as a dict, with rip and rflags."""
        cdef kvm_regs regs
        cdef int rc
        with nogil:
            rc = ioctl(self.fd, KVM_GET_REGS, &regs)
        check(rc, b"KVM_GET_REGS")
        return regs

    def set_regs(self, values):
        """Set the general registers; those not named become 0."""
        cdef kvm_regs regs
        memset(&regs, 0, sizeof(regs))
        known = dict(regs)
        for name in values:
            if name not in known:
                raise ValueError(f"no such register: {name!r}")
        known.update(values)
        regs = known
        check(ioctl(self.fd, KVM_SET_REGS, &regs), b"KVM_SET_REGS")

    def get_sregs(self):
        """Segments (dicts), gdt and idt (base, limit) and control registers."""
        cdef kvm_sregs sregs
        cdef kvm_segment *table = &sregs.cs
        cdef int rc
        with nogil:
            rc = ioctl(self.fd, KVM_GET_SREGS, &sregs)
        check(rc, b"KVM_GET_SREGS")
        out = {}
        for i, name in enumerate(SEGMENTS):
            out[name] = {}
            read_segment(&table[<int>i], out[name])
        out.update(gdt=(sregs.gdt.base, sregs.gdt.limit), idt=(sregs.idt.base, sregs.idt.limit),
                   cr0=sregs.cr0, cr2=sregs.cr2, cr3=sregs.cr3, cr4=sregs.cr4, cr8=sregs.cr8,
                   efer=sregs.efer, apic_base=sregs.apic_base)
        return out

    def set_sregs(self, values):
        """Change the named segments and control registers; the others keep their values."""
        cdef kvm_sregs sregs
        cdef kvm_segment *table = &sregs.cs
        check(ioctl(self.fd, KVM_GET_SREGS, &sregs), b"KVM_GET_SREGS")
        for name, value in values.items():
            if name in SEGMENTS:
                write_segment(&table[<int>SEGMENTS.index(name)], value)
            elif name == "gdt":
                sregs.gdt.base, sregs.gdt.limit = value
            elif name == "idt":
                sregs.idt.base, sregs.idt.limit = value
            elif name == "cr0":
                sregs.cr0 = value
            elif name == "cr2":
                sregs.cr2 = value
            elif name == "cr3":
                sregs.cr3 = value
            elif name == "cr4":
                sregs.cr4 = value
            elif name == "cr8":
                sregs.cr8 = value
            elif name == "efer":
                sregs.efer = value
            elif name == "apic_base":
                sregs.apic_base = value
            else:
                raise ValueError(f"no such system register: {name!r}")
        check(ioctl(self.fd, KVM_SET_SREGS, &sregs), b"KVM_SET_SREGS")

    def set_fpu(self, int fcw, uint32_t mxcsr):
        """Reset the FPU with these control words."""
        cdef kvm_fpu fpu
        memset(&fpu, 0, sizeof(fpu))
        fpu.fcw = fcw
        fpu.mxcsr = mxcsr
        check(ioctl(self.fd, KVM_SET_FPU, &fpu), b"KVM_SET_FPU")

    def get_xsave(self):
        """x87, SSE and further state in the form of XSAVE: 4096 bytes (SDM 1, 13.4)."""
        cdef char area[XSAVE_BYTES]
        memset(area, 0, sizeof(area))
        check(ioctl(self.fd, KVM_GET_XSAVE, &area), b"KVM_GET_XSAVE")
        return area[:XSAVE_BYTES]

    def set_xsave(self, bytes area not None):
        """All of what get_xsave() gives."""
        if len(area) != XSAVE_BYTES:
            raise ValueError(f"an XSAVE area has {XSAVE_BYTES} bytes, not {len(area)}")
        check(ioctl(self.fd, KVM_SET_XSAVE, <const char *>area), b"KVM_SET_XSAVE")

    def set_cpuid2(self, entries):
        """What CPUID answers: (function, index, flags, eax, ebx, ecx, edx) each, or packed."""
        set_packed_cpuid(self.fd, entries if isinstance(entries, bytes) else packed_cpuid(entries))

    def set_msrs(self, pairs):
        """Set (index, value) pairs; returns how many KVM took before it met one it refuses."""
        return msrs_ioctl(self.fd, KVM_SET_MSRS, b"KVM_SET_MSRS", pairs)[0]

    def get_msrs(self, indices):
        """Values of the MSRs in ``indices``, as far as KVM knows them."""
        return msrs_ioctl(self.fd, KVM_GET_MSRS, b"KVM_GET_MSRS", [(i, 0) for i in indices])[1]

    def get_lapic(self):
        """The LAPIC's register page: 1024 bytes, as a bytearray."""
        cdef kvm_lapic_state state
        check(ioctl(self.fd, KVM_GET_LAPIC, &state), b"KVM_GET_LAPIC")
        return bytearray(state.regs[:1024])

    def set_lapic(self, page):
        """Write the LAPIC's register page back (1024 bytes)."""
        cdef kvm_lapic_state state
        cdef bytes content = bytes(page)
        if len(content) != sizeof(state.regs):
            raise ValueError(f"a LAPIC page of {len(content)} bytes: 1024 are needed")
        memcpy(state.regs, <const char *>content, sizeof(state.regs))
        check(ioctl(self.fd, KVM_SET_LAPIC, &state), b"KVM_SET_LAPIC")

    def get_tsc_khz(self):
        """The guest's TSC frequency in kHz."""
        return check(ioctl(self.fd, KVM_GET_TSC_KHZ, 0), b"KVM_GET_TSC_KHZ")

    def get_vcpu_events(self):
        """Exceptions, interrupts and NMIs under way (api.rst, KVM_GET_VCPU_EVENTS)."""
        cdef kvm_vcpu_events events
        check(ioctl(self.fd, KVM_GET_VCPU_EVENTS, &events), b"KVM_GET_VCPU_EVENTS")
        return {
            "exception": {
                "injected": events.exception.injected, "nr": events.exception.nr,
                "has_error_code": events.exception.has_error_code,
                "pending": events.exception.pending, "error_code": events.exception.error_code,
            },
            "interrupt": {
                "injected": events.interrupt.injected, "nr": events.interrupt.nr,
                "soft": events.interrupt.soft, "shadow": events.interrupt.shadow,
            },
            "nmi": {
                "injected": events.nmi.injected, "pending": events.nmi.pending,
                "masked": events.nmi.masked,
            },
        }

    def set_vcpu_events(self, values):
        """Change the named groups, each as a whole; the others keep their values."""
        cdef kvm_vcpu_events events
        check(ioctl(self.fd, KVM_GET_VCPU_EVENTS, &events), b"KVM_GET_VCPU_EVENTS")
        for name, value in values.items():
            if name == "exception":
                events.exception.injected = value["injected"]
                events.exception.nr = value["nr"]
                events.exception.has_error_code = value["has_error_code"]
                events.exception.pending = value["pending"]
                events.exception.error_code = value["error_code"]
            elif name == "interrupt":
                events.interrupt.injected = value["injected"]
                events.interrupt.nr = value["nr"]
                events.interrupt.soft = value["soft"]
                events.interrupt.shadow = value["shadow"]
            elif name == "nmi":
                events.nmi.injected = value["injected"]
                events.nmi.pending = value["pending"]
                events.nmi.masked = value["masked"]
            else:
                raise ValueError(f"no such group of events: {name!r}")
        check(ioctl(self.fd, KVM_SET_VCPU_EVENTS, &events), b"KVM_SET_VCPU_EVENTS")

    def get_mp_state(self):
        """KVM_MP_STATE_*: 0 runnable, 1 uninitialized, 2 init received, 3 halted."""
        cdef kvm_mp_state state
        check(ioctl(self.fd, KVM_GET_MP_STATE, &state), b"KVM_GET_MP_STATE")
        return state.mp_state

    def set_guest_debug(self, bint step=False, breakpoints=(), bint software=False,
                        bint block_irq=False, bint inject_bp=False):
        """Stop this vCPU after one instruction, at DR0 to DR3, or at any int3.

        ``breakpoints`` is (linear address, DR7's two bits of kind, two bits of length) for up to
        four of them. ``block_irq`` keeps a step out of interrupts' handlers; ``inject_bp`` gives
        the guest a #BP of its own. Nothing at all takes the debugger away.
        Source: api.rst, 4.87; SDM 3B, 18.2.
        """
        cdef kvm_guest_debug debug
        fill_debug(&debug, step, breakpoints, software, block_irq)
        if inject_bp:
            debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_BP
        check(ioctl(self.fd, KVM_SET_GUEST_DEBUG, &debug), b"KVM_SET_GUEST_DEBUG")

    def kvmclock_ctrl(self):
        """The guest's watchdogs shall not count the time that it stood still; False when it does
        not use KVM's clock."""
        cdef int rc = ioctl(self.fd, KVM_KVMCLOCK_CTRL, 0)
        if rc < 0 and errno == EINVAL:
            return False
        check(rc, b"KVM_KVMCLOCK_CTRL")
        return True

    def get_stats_fd(self):
        """A new descriptor of the vCPU's statistics (KVM_CAP_BINARY_STATS_FD); the caller's."""
        return check(ioctl(self.fd, KVM_GET_STATS_FD, 0), b"KVM_GET_STATS_FD")

    def translate(self, uint64_t linear):
        """The guest physical address behind a linear one, or None when it is not mapped."""
        cdef kvm_translation translation
        memset(&translation, 0, sizeof(translation))
        translation.linear_address = linear
        check(ioctl(self.fd, KVM_TRANSLATE, &translation), b"KVM_TRANSLATE")
        return translation.physical_address if translation.valid else None


def pack_cpuid(entries):
    """The bytes of these entries, for set_cpuid2()."""
    return packed_cpuid(entries)


cdef bytes packed_cpuid(entries):
    cdef size_t count = len(entries)
    cdef size_t i = 0
    if count > CPUID_MAX:
        raise IoctlError(E2BIG, "KVM_SET_CPUID2")
    cdef bytearray room = bytearray(sizeof(uint32_t) * 2 + count * sizeof(kvm_cpuid_entry2))
    # SAFETY: ``room`` has place for as many entries as ``entries``, a sequence, has.
    cdef kvm_cpuid2 *table = <kvm_cpuid2 *><char *>room
    table.nent = count
    for function, index, flags, eax, ebx, ecx, edx in entries[:count]:
        table.entries[i] = kvm_cpuid_entry2(function, index, flags, eax, ebx, ecx, edx)
        i += 1
    return bytes(room)


cdef const char *checked_cpuid(bytes table) except NULL:
    # SAFETY: KVM reads as many entries as the table says that it has.
    if len(table) < sizeof(kvm_cpuid2) or len(table) < (
            sizeof(kvm_cpuid2) + (<kvm_cpuid2 *><char *>table).nent * sizeof(kvm_cpuid_entry2)):
        raise ValueError(f"a CPUID table of {len(table)} bytes is shorter than it says")
    return <const char *>table


cdef int set_packed_cpuid(int fd, bytes table) except -1:
    return check(ioctl(fd, KVM_SET_CPUID2, checked_cpuid(table)), b"KVM_SET_CPUID2")


cdef list cpuid_of(int fd, unsigned long request, const char *name):
    cdef kvm_cpuid2 *table = <kvm_cpuid2 *>calloc(
        1, sizeof(uint32_t) * 2 + CPUID_MAX * sizeof(kvm_cpuid_entry2))
    if table == NULL:
        raise MemoryError
    table.nent = CPUID_MAX
    try:
        check(ioctl(fd, request, table), name)
        return [(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx)
                for e in table.entries[:table.nent]]
    finally:
        free(table)


cdef object msrs_ioctl(int fd, unsigned long request, const char *name, pairs):
    cdef size_t count = len(pairs)
    cdef size_t i = 0
    if count > MSRS_MAX:
        raise ValueError(f"{count} MSRs in one call: at most {MSRS_MAX}")
    cdef kvm_msrs *table = <kvm_msrs *>calloc(
        1, sizeof(uint32_t) * 2 + MSRS_MAX * sizeof(kvm_msr_entry))
    if table == NULL:
        raise MemoryError
    table.nmsrs = count
    try:
        for index, value in pairs:
            table.entries[i].index = index
            table.entries[i].data = value
            i += 1
        done = check(ioctl(fd, request, table), name)
        return done, [table.entries[k].data for k in range(done)]
    finally:
        free(table)
