"""What this host's KVM does for breakpoints, found out by trying each on a scratch VM.

Documentation says that all work; nested, emulated and interpreted KVMs say otherwise.
"""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING

from vmm._native.host.fd import IoctlError
from vmm._native.kvm import bus
from vmm._native.kvm.bus import Bus
from vmm._native.kvm.runloop import VcpuLoop
from vmm._native.memory.guestmem import GuestMemory
from vmm._native.ports.stopport import StopPort
from vmm.host.kvm import open_kvm
from vmm.light.teardown import close_all
from vmm.x86 import regs

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm._native.kvm.vcpu import VcpuFd

CODE_GPA = 0x2000
DATA_GPA = 0x3000
RAM_BYTES = 0x10000
READONLY = 2
# DR7's kinds of a breakpoint (SDM 3B, 18.2.4), and its code for a length.
ON_EXECUTION, ON_WRITE, ON_ACCESS = 0, 1, 3
LENGTHS = {1: 0, 2: 1, 4: 3, 8: 2}
SCRATCH_PORT = 0xE0
TRY_NS = 100_000_000
CAP_GUEST_DEBUG2 = 195
BLOCK_IRQ = 1 << 20
INT3 = b"\xcc"
# nop; nop; mov [DATA_GPA], al; hlt
PLAIN = bytes.fromhex("90 90 a2") + DATA_GPA.to_bytes(4, "little") + b"\xf4"
RFLAGS_RF = 1 << 16


class _Scratch:
    """One vCPU in flat 32-bit mode over a few pages; each try starts afresh."""

    def __init__(self) -> None:
        self._done = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.kvm = open_kvm()
        self.memory = GuestMemory([(0, RAM_BYTES)])
        vm = self.kvm.create_vm()
        ((gpa, size, hva),) = self.memory.slots
        vm.set_user_memory_region(0, gpa, size, hva)
        self.vm = vm
        self.vcpu: VcpuFd = vm.create_vcpu(0, 0, self.kvm.get_vcpu_mmap_size())
        pio = Bus("ports")
        pio.attach(SCRATCH_PORT, 1, StopPort(), "scratch")
        self.mmio = Bus("MMIO")
        self.loop = VcpuLoop(self.vcpu, pio, self.mmio, self._done)
        sregs = regs.boot_sregs()
        self.memory.write(sregs["gdt"][0], regs.gdt_bytes())
        self.vcpu.set_sregs(sregs)

    def run(self, code: bytes, rflags: int = regs.RFLAGS_RESERVED, **debug: object) -> int:
        """The outcome of ``code`` under these settings of KVM_SET_GUEST_DEBUG."""
        self.memory.write(CODE_GPA, code)
        self.vcpu.set_regs({"rip": CODE_GPA, "rflags": rflags})
        self.vcpu.set_guest_debug(**debug)  # type: ignore[arg-type]
        return self.loop.run_here(TRY_NS)

    def close(self) -> None:
        close_all(
            [self.vcpu.close, self.vm.close, self.memory.close, self.kvm.close,
             lambda: os.close(self._done)]
        )  # fmt: skip


class Abilities:
    """Which strategies work on this host. Each is tried when it is first asked for."""

    @cached_property
    def step(self) -> bool:
        """Single steps."""
        return _hits(PLAIN, 1, CODE_GPA + 1, step=True)

    @cached_property
    def hardware(self) -> bool:
        """Execution breakpoints in DR0 to DR3."""
        return _hits(PLAIN, 1, CODE_GPA + 1, breakpoints=[(CODE_GPA + 1, ON_EXECUTION, 0)])

    @cached_property
    def watch(self) -> bool:
        """Watchpoints in DR0 to DR3."""
        return _hits(PLAIN, 1, CODE_GPA + 7, breakpoints=[(DATA_GPA, ON_WRITE, 0)])

    @cached_property
    def int3(self) -> bool:
        """int3 in the guest's code comes to us."""
        return _hits(INT3 + PLAIN, 3, CODE_GPA, software=True)

    @cached_property
    def port(self) -> bool:
        """``out imm8, al`` in the guest's code comes to us, with rip behind it."""
        return _tried(_port_works)

    @cached_property
    def page(self) -> bool:
        """A write to a read-only slot comes to us as MMIO."""
        return _tried(_page_works)

    @cached_property
    def resume_flag(self) -> bool:
        """RFLAGS.RF lets a vCPU leave an execution breakpoint without a single step."""
        both = [(CODE_GPA + n, ON_EXECUTION, 0) for n in (0, 1)]
        rflags = regs.RFLAGS_RESERVED | RFLAGS_RF
        return _hits(PLAIN, 1, CODE_GPA + 1, breakpoints=both, rflags=rflags)

    @cached_property
    def block_irq(self) -> bool:
        """A single step does not end in an interrupt's handler."""
        return _tried(
            lambda scratch: bool(scratch.vm.check_extension(CAP_GUEST_DEBUG2) & BLOCK_IRQ)
        )


# For the whole process: the host's KVM stays the same.
ABILITIES = Abilities()


def _tried(attempt: Callable[[_Scratch], bool]) -> bool:
    scratch = _Scratch()
    try:
        return attempt(scratch)
    except IoctlError:
        return False  # KVM refuses it
    finally:
        scratch.close()


def _hits(code: bytes, exception: int, pc: int, **debug: object) -> bool:
    def attempt(scratch: _Scratch) -> bool:
        stopped = scratch.run(code, **debug) == bus.STOP  # type: ignore[arg-type]
        return stopped and scratch.loop.debug_exit()[:2] == (pc, exception)

    return _tried(attempt)


def _page_works(scratch: _Scratch) -> bool:
    ((gpa, size, hva),) = scratch.memory.slots
    # The same memory a second time, behind the first.
    scratch.vm.set_user_memory_region(1, gpa + size, size, hva, READONLY)
    scratch.mmio.attach(gpa + size, size, StopPort(), "scratch")
    return scratch.run(b"\xa2" + (gpa + size).to_bytes(4, "little") + PLAIN) == bus.STOP


def _port_works(scratch: _Scratch) -> bool:
    if scratch.run(b"\xe6" + bytes([SCRATCH_PORT]) + PLAIN) != bus.STOP:
        return False
    scratch.loop.settle()
    return scratch.vcpu.get_regs()["rip"] == CODE_GPA + 2
