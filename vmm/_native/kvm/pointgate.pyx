"""Decides without Python whether a vCPU that hit a breakpoint stands still.

It does when one of the points there holds, or Python has to be asked; else the vCPU goes on: past
a debug register by RFLAGS.RF or a single step, past a patch by a single step with the patch out
(where no other vCPU would miss it), past a NOP by moving rip.
Source: SDM 3B, 18.2 and 18.3.1; Documentation/virt/kvm/api.rst, 4.87 (KVM_SET_GUEST_DEBUG).
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from cpython.pycapsule cimport PyCapsule_New
from cpython.ref cimport PyObject

from vmm._native.kvm.bus cimport OUTCOME_CONTINUE, OUTCOME_STOP
from vmm._native.kvm.condition cimport FALSE, REGISTERS, Condition, read_registers
from vmm._native.kvm.gate cimport GATE_NAME, DebugExit
from vmm._native.kvm.vcpu cimport VcpuFd, fill_debug
from vmm._native.linux.kvm cimport *
from vmm._native.linux.kvm_state cimport kvm_sregs2
from vmm._native.memory.codepatch cimport Patch

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)

cdef enum:
    RIP = 16                     # its number among a condition's registers
    RFLAGS_RF = 1 << 16
    BREAK_EXCEPTION = 3
    OUT_BYTES = 2                # of `out imm8, al`, with rip behind it when it comes to us


cdef class PointTable:
    """Where the enabled points of a guest are, and what each wants; it does not change any more.

    ``slots`` are (address, is_watch, condition), in the order of the debug registers; ``sites``
    (address, Patch or None, conditions of all points there). A condition is a Condition, or None
    where Python has to be asked. ``running`` and ``stepping`` are arguments of set_guest_debug()
    while the guest runs and while a vCPU leaves a point.
    """

    def __cinit__(self, slots, sites, running, stepping, bint alone, bint resume_flag,
                  int stop_port):
        if len(slots) > SLOTS:
            raise ValueError(f"{len(slots)} debug registers: {SLOTS}")
        self.kept = []
        self.alone = alone
        self.resume_flag = resume_flag
        self.stop_port = stop_port
        self.steps = running["step"]
        fill_debug(&self.running, running["step"], running["breakpoints"], running["software"],
                   False)
        fill_debug(&self.stepping, True, stepping["breakpoints"], stepping["software"],
                   stepping["block_irq"])
        wanted = len(slots) + sum([len(conditions) for _, _, conditions in sites])
        self.conditions = <PyObject **>calloc(wanted + 1, sizeof(PyObject *))
        self.sites = <Site *>calloc(len(sites) + 1, sizeof(Site))
        if self.conditions == NULL or self.sites == NULL:
            raise MemoryError
        for address, is_watch, condition in slots:
            self.slots[self.slot_count] = Slot(address, is_watch, self.group_of([condition]))
            self.slot_count += 1
        for address, patch, conditions in sorted(sites, key=lambda site: site[0]):
            self.sites[self.site_count].address = address
            self.sites[self.site_count].group = self.group_of(conditions)
            if patch is not None:
                self.sites[self.site_count].patch = <PyObject *><Patch?>patch
                self.kept.append(patch)
            self.site_count += 1

    def __dealloc__(self):
        free(self.conditions)
        free(self.sites)

    cdef Group group_of(self, conditions):
        cdef Group group = Group(self.condition_count, len(conditions))
        for condition in conditions:
            if condition is not None:
                self.conditions[self.condition_count] = <PyObject *><Condition?>condition
                self.wants_system = self.wants_system or (<Condition>condition).wants_system
                self.kept.append(condition)
            self.condition_count += 1
        return group

    cdef Site *find(self, uint64_t address) noexcept nogil:
        cdef int low = 0
        cdef int high = self.site_count
        cdef int middle
        while low < high:
            middle = (low + high) // 2
            if self.sites[middle].address < address:
                low = middle + 1
            else:
                high = middle
        if low < self.site_count and self.sites[low].address == address:
            return &self.sites[low]
        return NULL

    cdef bint all_false(self, Group group, const uint64_t *registers) noexcept nogil:
        # SAFETY: `kept` holds what the pointers point to as long as the table lives.
        cdef int i
        for i in range(group.first, group.first + group.count):
            if self.conditions[i] == NULL:
                return False
            if (<Condition>self.conditions[i]).holds(registers) != FALSE:
                return False
        return True

    cdef void pass_by(self, Group group) noexcept nogil:
        cdef int i
        for i in range(group.first, group.first + group.count):
            (<Condition>self.conditions[i]).pass_by()


cdef int gate_judge(void *owner, int fd, uint32_t reason, uint64_t address,
                    const DebugExit *debug) noexcept nogil:
    # SAFETY: VcpuLoop keeps the object as long as it has its gate.
    return (<PointGate><PyObject *>owner).judge(fd, reason, address, debug)


cdef void gate_leave(void *owner, int fd) noexcept nogil:
    # SAFETY: as above.
    (<PointGate><PyObject *>owner).end_step(fd)


cdef class PointGate:
    """The gate of one vCPU: VcpuLoop.set_gate(). While not ``active`` every exit comes to Python.

    ``table`` and ``active`` are changed while the vCPU stands still only.
    """

    def __cinit__(self):
        self.form.judge = gate_judge
        self.form.leave = gate_leave
        self.form.owner = <PyObject *>self

    def gate(self):
        """For VcpuLoop.set_gate()."""
        return PyCapsule_New(&self.form, GATE_NAME, NULL)

    def set_table(self, PointTable table not None):
        """What holds from now on."""
        self.table = table

    def decide(self, VcpuFd vcpu not None, uint64_t pc, uint32_t exception, uint64_t dr6=0):
        """The outcome of a debug exit (1: #DB, 3: #BP) as if KVM had reported it; for tests."""
        cdef DebugExit debug = DebugExit(pc, dr6, 0, exception)
        cdef int outcome
        if self.table is None:
            return OUTCOME_STOP
        with nogil:
            outcome = self.judge(vcpu.fd, KVM_EXIT_DEBUG, 0, &debug)
        return outcome

    cdef int judge(self, int fd, uint32_t reason, uint64_t address,
                   const DebugExit *debug) noexcept nogil:
        cdef bint stepped = self.stepping
        if stepped and not self.end_step(fd):
            return OUTCOME_STOP
        if not self.active:
            return OUTCOME_STOP
        if reason == <uint32_t>KVM_EXIT_IO and address == <uint64_t>self.table.stop_port:
            return self.patch_hit(fd, OUT_BYTES)
        if reason != <uint32_t>KVM_EXIT_DEBUG:
            return OUTCOME_STOP
        if debug.exception == BREAK_EXCEPTION:
            return self.patch_hit(fd, 0)
        return self.hardware_hit(fd, debug, stepped)

    cdef int hardware_hit(self, int fd, const DebugExit *debug, bint stepped) noexcept nogil:
        """A debug register, or the end of a single step."""
        cdef kvm_regs regs
        cdef kvm_sregs2 sregs
        cdef uint64_t registers[REGISTERS]
        cdef Site *site = self.table.find(debug.pc)
        cdef bint looked = site != NULL and site.patch == NULL
        cdef bint stands = False
        cdef int hits = self.slot_hits(debug, &stands)
        if not hits and not looked:
            # Nobody's: a step of ours, or of a guest that is looked at in each instruction.
            return OUTCOME_CONTINUE if stepped or self.table.steps else OUTCOME_STOP
        if read_registers(fd, &regs, &sregs if self.table.wants_system else NULL, registers) < 0:
            return OUTCOME_STOP
        if not self.slots_false(hits, registers):
            return OUTCOME_STOP
        if looked and not self.table.all_false(site.group, registers):
            return OUTCOME_STOP
        if stands and self.leave_slot(fd, &regs, site) == OUTCOME_STOP:
            return OUTCOME_STOP
        self.count_passed(hits, site if looked else NULL)
        return OUTCOME_CONTINUE

    cdef int slot_hits(self, const DebugExit *debug, bint *stands) noexcept nogil:
        """A bit for each debug register that is hit; ``stands``: the vCPU is still before it."""
        cdef int hits = 0
        cdef int i
        for i in range(self.table.slot_count):
            if self.table.slots[i].is_watch:
                hits |= <int>debug.dr6 & 1 << i
            elif self.table.slots[i].address == debug.pc:
                hits |= 1 << i
                stands[0] = True
        return hits

    cdef bint slots_false(self, int hits, const uint64_t *registers) noexcept nogil:
        cdef int i
        for i in range(self.table.slot_count):
            if hits >> i & 1 and not self.table.all_false(self.table.slots[i].group, registers):
                return False
        return True

    cdef void count_passed(self, int hits, Site *site) noexcept nogil:
        cdef int i
        for i in range(self.table.slot_count):
            if hits >> i & 1:
                self.table.pass_by(self.table.slots[i].group)
        if site != NULL:
            self.table.pass_by(site.group)

    cdef int leave_slot(self, int fd, kvm_regs *regs, Site *site) noexcept nogil:
        """Past an instruction at which a debug register stands."""
        if not self.table.resume_flag:
            return self.step_over(fd, site)
        regs.rflags |= RFLAGS_RF
        return OUTCOME_STOP if ioctl(fd, KVM_SET_REGS, regs) < 0 else OUTCOME_CONTINUE

    cdef int patch_hit(self, int fd, uint64_t back) noexcept nogil:
        """A patch was executed, and is ``back`` bytes before rip."""
        cdef kvm_regs regs
        cdef kvm_sregs2 sregs
        cdef uint64_t registers[REGISTERS]
        cdef Site *site
        cdef uint64_t base
        if read_registers(fd, &regs, &sregs, registers) < 0:
            return OUTCOME_STOP
        base = 0 if sregs.cs.l else sregs.cs.base
        site = self.table.find(base + regs.rip - back)
        if site == NULL or site.patch == NULL:
            return OUTCOME_STOP
        registers[RIP] = regs.rip - back
        if not self.table.all_false(site.group, registers):
            return OUTCOME_STOP
        if self.pass_patch(fd, &regs, site, back, sregs.cs.l or sregs.cs.db) == OUTCOME_STOP:
            return OUTCOME_STOP
        self.table.pass_by(site.group)
        return OUTCOME_CONTINUE

    cdef int pass_patch(self, int fd, kvm_regs *regs, Site *site, uint64_t back,
                        bint wide) noexcept nogil:
        cdef int length = (<Patch>site.patch).skipped() if wide else 0
        if not length and not self.table.alone:
            return OUTCOME_STOP
        regs.rip += <uint64_t>length - back
        # Without a change KVM has the registers already.
        if (length or back) and ioctl(fd, KVM_SET_REGS, regs) < 0:
            return OUTCOME_STOP
        return OUTCOME_CONTINUE if length else self.step_over(fd, site)

    cdef int step_over(self, int fd, Site *site) noexcept nogil:
        """Let the vCPU make one instruction; the exit behind it comes to judge()."""
        if site != NULL and site.patch != NULL:
            if not self.table.alone:
                return OUTCOME_STOP
            self.lifted = site.patch
            (<Patch>site.patch).lift()
        self.stepping = True
        if ioctl(fd, KVM_SET_GUEST_DEBUG, &self.table.stepping) < 0:
            self.end_step(fd)
            return OUTCOME_STOP
        return OUTCOME_CONTINUE

    cdef bint end_step(self, int fd) noexcept nogil:
        """Everything as it is while the guest runs; False when KVM refuses that."""
        if not self.stepping:
            return True
        self.stepping = False
        if self.lifted != NULL:
            (<Patch>self.lifted).drop()
            self.lifted = NULL
        return ioctl(fd, KVM_SET_GUEST_DEBUG, &self.table.running) == 0
