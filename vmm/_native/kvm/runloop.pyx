"""Runs a vCPU in a native thread until an outcome ends it.

An exit whose device is native never touches the GIL. The thread keeps one Python thread state for
its whole life, so that an exit to a Python device costs a GIL hand-over and no more.
Source: Documentation/virt/kvm/api.rst, 5 (struct kvm_run), 4.10 (KVM_RUN).
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint32_t, uint64_t
from posix.unistd cimport close as c_close

from cpython.exc cimport PyErr_CheckSignals

from vmm._native.kvm.bus cimport (
    own_thread_begins, own_thread_ends, vcpu_begins, OUTCOME_CONTINUE, OUTCOME_CRASH, OUTCOME_ERROR,
    OUTCOME_KICKED, OUTCOME_RESET, OUTCOME_STOP, Bus,
)
from vmm._native.kvm.exits cimport mmio_exit, msr_exit, port_exit
from vmm._native.kvm.gate cimport DebugExit, gate_leave, gate_of
from vmm._native.kvm.signals cimport (
    timer_delete, timer_t, usleep, vmm_gettid, vmm_heed_sigint, vmm_kick_install, vmm_kick_unblock,
    vmm_load, vmm_notify, vmm_run_begins, vmm_store, vmm_store_byte, vmm_swap_byte, vmm_tgkill,
    vmm_timer_start, vmm_unheed_sigint, vmm_wait_for,
)
from vmm._native.kvm.tracering cimport change_ring, run_vcpu, trace_exit
from vmm._native.kvm.vcpu cimport VcpuFd
from vmm._native.linux.kvm cimport *
from vmm._native.host.fd cimport check
from vmm._native.host.confine cimport KIND_VCPU
from vmm._native.host.thread cimport thread_join, thread_start_on

from vmm._native.host.fd import IoctlError
from vmm._native.kvm.vcpu import EXIT_NAMES

import os

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)

cdef enum:
    PAUSE_STEP_US = 500          # how often pause() asks again
    COMPLETE = 2                 # immediate_exit, when nobody but complete() wants it


cdef void vcpu_main(void *arg) noexcept nogil:
    own_thread_begins()
    # SAFETY: start() keeps the VcpuLoop alive until join(), as its owner must; no reference is
    # counted here, which would need the GIL.
    (<VcpuLoop>arg).run_thread()
    own_thread_ends()


cdef class VcpuLoop:
    """One vCPU's thread. start(), pause(), resume(), kick() and join() are the control thread's.

    ``done_fd`` is an eventfd written once when the loop ends; ``outcome`` says why (of bus.pyx).
    """

    def __cinit__(self, VcpuFd vcpu, Bus pio, Bus mmio, int done_fd):
        self.vcpu = vcpu
        self.pio = pio
        self.mmio = mmio
        self.done_fd = done_fd
        self.thread.started = False
        self.outcome = OUTCOME_CONTINUE
        self.resume_fd = -1
        self.rings = []

    def __dealloc__(self):
        # The thread holds no reference: an owner that forgot join() must not free it meanwhile.
        vmm_store(&self.stop, 1)
        self.finish()

    def start(self, str name, bint held=False, bytes processors=b""):
        """Start the thread; it runs the guest at once or, ``held``, when resume() is called.

        ``processors`` is a bitmap of those of the host's that it may run on; empty: all of ours.
        """
        if self.thread.started:
            raise RuntimeError(f"{name}: already started")
        vmm_kick_install()
        self.resume_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.thread_name = name.encode()
        self.outcome = OUTCOME_CONTINUE
        self.failure = 0
        vmm_store(&self.stop, 0)
        vmm_store(&self.pause_wanted, held)
        self.vcpu.run.immediate_exit = held
        cdef int rc = thread_start_on(
            &self.thread, KIND_VCPU, self.thread_name, vcpu_main, <void *>self,
            <const char *>processors, len(processors))
        if rc:
            self.finish()
            raise IoctlError(rc, f"pthread_create for {name}")

    def kick(self):
        """Make the loop end with KICKED as soon as possible; safe at any time, any number."""
        vmm_store(&self.stop, 1)
        self.interrupt()
        vmm_notify(self.resume_fd)

    def pause(self, unsigned int timeout_ms=100):
        """Hold the thread between two KVM_RUNs until resume(); False when it could not be held.

        While it is held the vCPU's registers can be read, with every instruction complete.
        """
        cdef unsigned int waited = 0
        cdef bint held = False
        if self.resume_fd < 0:
            return False
        vmm_store(&self.pause_wanted, 1)
        with nogil:
            while self.outcome == OUTCOME_CONTINUE and waited < 1000 * timeout_ms:
                held = vmm_load(&self.parked) != 0
                if held:
                    break
                # Asked again each time: a signal just before KVM_RUN is entered is lost, and
                # immediate_exit too, when the thread was about to clear it for an older one.
                self.interrupt()
                usleep(PAUSE_STEP_US)
                waited += PAUSE_STEP_US
        if not held:
            self.resume()
        return held

    def resume(self):
        """Let a paused thread go on; harmless for one that is not."""
        vmm_store(&self.stood, 0)  # answered, even if it is paused again before it moves
        vmm_store(&self.pause_wanted, 0)
        vmm_notify(self.resume_fd)

    cdef void run_thread(self) noexcept nogil:
        vmm_kick_unblock()
        vcpu_begins(self.vcpu.index)
        self.outcome = self.loop()
        gate_leave(self.gate, self.vcpu.fd)
        vmm_run_begins(NULL)
        vmm_store(&self.tid, 0)
        vmm_notify(self.done_fd)

    cdef void interrupt(self) noexcept nogil:
        cdef int tid = vmm_load(&self.tid)
        if self.vcpu.run != NULL:
            # Closes the race of a signal that arrives just before KVM_RUN is entered.
            vmm_store_byte(&self.vcpu.run.immediate_exit, 1)
        if tid:
            vmm_tgkill(tid)

    cdef void finish(self) noexcept:
        vmm_notify(self.resume_fd)
        with nogil:
            thread_join(&self.thread)
        if self.resume_fd >= 0:
            c_close(self.resume_fd)
            self.resume_fd = -1

    cdef void park(self) noexcept nogil:
        gate_leave(self.gate, self.vcpu.fd)
        while vmm_load(&self.pause_wanted) and not vmm_load(&self.stop):
            vmm_store(&self.parked, 1)
            while vmm_load(&self.pause_wanted) and not vmm_load(&self.stop):
                vmm_wait_for(self.resume_fd)
            vmm_store(&self.parked, 0)  # then ask again: pause() may have counted on it

    def join(self):
        """Wait for the end of the thread (kick() first); returns the outcome. Idempotent."""
        self.finish()
        return self.outcome

    def run_here(self, long long timeout_ns=0):
        """Run the guest on the calling thread until an outcome; for scripts and tests.

        KICKED when kick(), a signal or the time-out (0: none) came first; the guest can go on. A
        Python signal handler that raises does so from here. The kernel waits some ms when a vCPU's
        thread is another one than before.
        """
        cdef timer_t timer
        cdef int rc = 0, outer
        vmm_kick_install()
        cdef bint heeded = vmm_heed_sigint()
        self.here = True
        with nogil:
            vmm_kick_unblock()
            if timeout_ns > 0:
                rc = vmm_timer_start(&timer, timeout_ns)
            if rc == 0:
                outer = vcpu_begins(self.vcpu.index)
                self.outcome = self.loop()
                gate_leave(self.gate, self.vcpu.fd)
                vcpu_begins(outer)
                vmm_run_begins(NULL)
                vmm_store(&self.stop, 0)
                vmm_store(&self.tid, 0)
                if timeout_ns > 0:
                    timer_delete(timer)
        self.here = False
        if heeded:
            vmm_unheed_sigint()
        if rc:
            raise IoctlError(rc, "timer_create")
        if self.outcome == OUTCOME_KICKED:
            PyErr_CheckSignals()
        return self.outcome

    def settle(self):
        """Complete the access that the vCPU stopped in, for its registers; it stands still."""
        with nogil:
            self.complete()

    cdef void complete(self) noexcept nogil:
        if self.vcpu.run.exit_reason == <uint32_t>KVM_EXIT_DEBUG:
            return    # no access: whole as it is
        # An access that crosses pages has more parts, each an exit of its own. A signal's own 1
        # stays, so that none is lost.
        vmm_swap_byte(&self.vcpu.run.immediate_exit, 0, COMPLETE)
        while ioctl(self.vcpu.fd, KVM_RUN, 0) == 0 and self.late == OUTCOME_CONTINUE:
            self.late = self.dispatch()
            self.late = OUTCOME_CONTINUE if self.late == OUTCOME_STOP else self.late
        if self.late == OUTCOME_CONTINUE:
            self.vcpu.run.exit_reason = KVM_EXIT_INTR       # for settle(): it is complete
        vmm_swap_byte(&self.vcpu.run.immediate_exit, COMPLETE, 0)

    def answer(self, unsigned int back=0):
        """A STOP is dealt with: in the same moment, for signal handlers that raise, rip goes
        ``back`` so many bytes."""
        cdef kvm_regs regs
        if back:
            check(ioctl(self.vcpu.fd, KVM_GET_REGS, &regs), b"KVM_GET_REGS")
            regs.rip -= back
            check(ioctl(self.vcpu.fd, KVM_SET_REGS, &regs), b"KVM_SET_REGS")
        self.stood = 0

    def renew(self):
        """Forget how the guest ended, and kicks from before; nothing runs."""
        self.late = OUTCOME_CONTINUE
        self.vcpu.run.immediate_exit = self.stop = 0

    def debug_exit(self):
        """(pc, exception, dr6, dr7) of the newest debug exit; exception 1 is #DB, 3 is #BP."""
        return self.debug.pc, self.debug.exception, self.debug.dr6, self.debug.dr7

    @property
    def stands(self):
        """True while the thread is held by an exit that wants an answer (STOP) before resume()."""
        return vmm_load(&self.parked) != 0 and vmm_load(&self.stood) != 0

    @property
    def running(self):
        """True while the thread is inside its loop."""
        return vmm_load(&self.tid) != 0

    @property
    def thread_id(self):
        """The kernel's id of the thread (gettid(2)) while it runs, else 0."""
        return vmm_load(&self.tid)

    def counters(self):
        """Exits by reason since the start, as {name: count}."""
        found = {}
        for reason in range(EXIT_KINDS):
            if self.counts[reason]:
                found[EXIT_NAMES.get(reason, f"exit_{reason}")] = self.counts[reason]
        return found

    def last_exits(self):
        """Up to 32 newest exits, oldest first: (reason, address, size, is_write, data)."""
        cdef uint64_t first = self.exits - TRAIL if self.exits > TRAIL else 0
        found = []
        for n in range(first, self.exits):
            record = self.trail[n & (TRAIL - 1)]
            name = EXIT_NAMES.get(record.reason, f"exit_{record.reason}")
            found.append((name, record.address, record.size, bool(record.is_write), record.data))
        return found

    def set_trace(self, ring):
        """Record exits in ``ring`` (a fresh TraceRing), None: no more. Any thread, at any time.

        The vCPU leaves the guest once, so that it holds from now on and not from its next exit.
        """
        self.rings = change_ring(&self.tracing, self.rings, ring, self.vcpu.index)
        if vmm_load(&self.tid):
            self.interrupt()

    def set_gate(self, owner):
        """Let ``owner`` (a PointGate, or None) be asked before an exit stops this vCPU, which
        stands still."""
        self.gate = gate_of(owner)
        self.gatekeeper = owner

    def newest_exit(self):
        """(reason, address) of the newest exit."""
        record = self.trail[(self.exits - 1) & (TRAIL - 1)]
        return EXIT_NAMES.get(record.reason, ""), record.address

    def stop_detail(self):
        """What the kernel said of the exit that ended the loop, as text."""
        if self.failure:
            return str(IoctlError(self.failure, "KVM_RUN"))
        return self.vcpu.exit_text()

    cdef int loop(self) noexcept nogil:
        cdef int outcome, rc
        cdef ExitRecord *record
        vmm_store(&self.tid, vmm_gettid())
        vmm_store(&self.stood, 0)
        outcome, self.late = self.late, OUTCOME_CONTINUE
        if outcome != OUTCOME_CONTINUE:
            return outcome
        while not vmm_load(&self.stop):
            vmm_run_begins(self.vcpu.run)
            rc = run_vcpu(&self.tracing, self.vcpu.fd, self.vcpu.run)
            if rc < 0:
                if errno == EINTR or errno == EAGAIN:
                    # Reached with a port access completed, so registers are whole here.
                    self.vcpu.run.exit_reason = KVM_EXIT_INTR
                    if vmm_load(&self.pause_wanted):
                        self.park()
                    # Before `stop` is read again: kick() sets it first, so it is not missed.
                    vmm_store_byte(&self.vcpu.run.immediate_exit, 0)
                    if self.here:
                        return OUTCOME_KICKED
                    continue
                self.failure = errno
                return OUTCOME_ERROR
            record = &self.trail[self.exits & (TRAIL - 1)]
            outcome = self.dispatch()
            trace_exit(&self.tracing, self.vcpu.run, record)
            if outcome == OUTCOME_STOP and self.gate != NULL:
                outcome = self.ask_gate(record)
            if outcome == OUTCOME_STOP:
                vmm_store(&self.stood, 1)
            if outcome == OUTCOME_STOP and not self.here:
                self.stand()
            elif outcome != OUTCOME_CONTINUE:
                # A port access is completed by the next KVM_RUN only, which restore() waits for.
                return outcome
        if self.here:
            # Asked for between an access and its completion: registers shall be whole.
            self.complete()
            vmm_store_byte(&self.vcpu.run.immediate_exit, 0)
        return OUTCOME_KICKED

    cdef void stand(self) noexcept nogil:
        # As if pause() had been called; whoever drives this vCPU hears of it and calls resume().
        self.complete()
        vmm_store(&self.pause_wanted, 1)
        vmm_notify(self.done_fd)
        self.park()

    cdef int ask_gate(self, ExitRecord *record) noexcept nogil:
        if record.reason == <uint32_t>KVM_EXIT_IO:
            self.complete()
            if self.late != OUTCOME_CONTINUE:
                return OUTCOME_STOP
        return self.gate.judge(self.gate.owner, self.vcpu.fd, record.reason, record.address,
                               &self.debug)

    cdef int dispatch(self) noexcept nogil:
        cdef kvm_run *run = self.vcpu.run
        cdef uint32_t reason = run.exit_reason
        cdef ExitRecord *record = &self.trail[self.exits & (TRAIL - 1)]
        self.exits += 1
        self.counts[reason if reason < EXIT_KINDS else EXIT_KINDS - 1] += 1
        record.reason = reason
        if reason == <uint32_t>KVM_EXIT_IO:
            return port_exit(run, record, self.pio)
        if reason == <uint32_t>KVM_EXIT_MMIO:
            return mmio_exit(run, record, self.mmio)
        record.address = 0
        record.data = 0
        record.size = 0
        record.is_write = 0
        if reason == <uint32_t>KVM_EXIT_SHUTDOWN:
            return OUTCOME_RESET
        if reason == <uint32_t>KVM_EXIT_INTR or reason == <uint32_t>KVM_EXIT_IRQ_WINDOW_OPEN:
            return OUTCOME_CONTINUE
        if reason == <uint32_t>KVM_EXIT_DEBUG:
            record.address = run.debug.arch.pc
            self.debug = DebugExit(run.debug.arch.pc, run.debug.arch.dr6, run.debug.arch.dr7,
                                   run.debug.arch.exception)
            return OUTCOME_STOP
        if reason == <uint32_t>KVM_EXIT_X86_RDMSR or reason == <uint32_t>KVM_EXIT_X86_WRMSR:
            return msr_exit(run, record, self.msr)
        if reason == <uint32_t>KVM_EXIT_INTERNAL_ERROR:
            record.address = run.internal.suberror
        return OUTCOME_CRASH
