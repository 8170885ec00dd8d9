"""Finds out whether this host's KVM can execute an unmodified kernel, by trying.

Some /dev/kvm devices interpret ring 0 and miss instructions that every kernel uses. A tiny guest
executes those at once: a breakpoint trap, XSAVE and XRSTOR, and CMPXCHG16B in long mode.
"""

from __future__ import annotations

import os

from vmm._native.kvm.bus import SHUTDOWN, Bus
from vmm._native.kvm.runloop import VcpuLoop
from vmm._native.memory.guestmem import GuestMemory
from vmm.errors import VmmError
from vmm.host.kvm import open_kvm
from vmm.vm import Vm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

RAM = 2 << 20
CODE_GPA = 0x10000
GDT_GPA = 0x1000
IDT_GPA = 0x2000
PML4_GPA = 0x3000
PDPT_GPA = 0x4000
PD_GPA = 0x5000
XSAVE_GPA = 0x8000
STACK_GPA = 0x7FF0
DONE_PORT = 0x600
CODE_SELECTOR = 8
DATA_SELECTOR = 0x10
LEAF_FEATURES = 1
ECX_XSAVE = 1 << 26
ECX_CX16 = 1 << 13
CR4_PAE = 0x20
CR4_OSFXSR_OSXSAVE = 0x40200
PRESENT_WRITABLE = 3
PAGE_2M = 0x80
CR0_PE_ET_PG = 0x80000011
EFER_LME_LMA = 0x500

# mov eax,3; xor edx,edx; xor ecx,ecx; xsetbv
SET_XCR0 = "b803000000 31d2 31c9 0f01d1"
# mov eax,3; xor edx,edx; xsave [XSAVE_GPA]; xrstor [XSAVE_GPA]
XSAVE_XRSTOR = "b803000000 31d2 0fae242500800000 0fae2c2500800000"
# lock cmpxchg16b [XSAVE_GPA + 0x800]
CMPXCHG16B = "f0480fc70c2500880000"
BREAKPOINT = "cc"
# mov dx,DONE_PORT; mov al,0x34; out dx,al; hlt
DONE = "66ba0006 b034 ee f4"
IRETQ = "48cf"


class _Done:
    """The port that the tiny guest writes when it has come through."""

    def read(self, offset: int, size: int) -> int:
        """Nothing to read."""
        return 0xFF

    def write(self, offset: int, value: int, size: int) -> int:
        """The guest has executed everything."""
        return SHUTDOWN


def can_run_kernels() -> tuple[bool, str]:
    """(True, "") when guest kernels run here, else (False, the reason). Takes a few ms."""
    try:
        return _try_guest()
    except (VmmError, OSError) as error:
        return False, str(error)


def _segment(selector: int, kind: int, long_mode: int) -> dict[str, int]:
    return {
        "base": 0, "limit": 0xFFFFFFFF, "selector": selector, "type": kind, "present": 1,
        "dpl": 0, "db": 1 - long_mode, "s": 1, "l": long_mode, "g": 1, "avl": 0,
    }  # fmt: skip


def _prepare(memory: GuestMemory, code: bytes) -> dict[str, Any]:
    """Long mode with the first 2 MiB mapped one to one, and a gate for int3."""
    handler = CODE_GPA + len(code)
    memory.write(CODE_GPA, code + bytes.fromhex(IRETQ))
    for gpa, entry in ((PML4_GPA, PDPT_GPA), (PDPT_GPA, PD_GPA), (PD_GPA, PAGE_2M)):
        memory.write(gpa, (entry | PRESENT_WRITABLE).to_bytes(8, "little"))
    gdt = (0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF)
    memory.write(GDT_GPA, b"".join([entry.to_bytes(8, "little") for entry in gdt]))
    gate = (handler & 0xFFFF) | CODE_SELECTOR << 16 | 0x8E00 << 32 | (handler >> 16) << 48
    memory.write(IDT_GPA + 3 * 16, gate.to_bytes(8, "little"))
    data = _segment(DATA_SELECTOR, 3, 0)
    return {
        "cs": _segment(CODE_SELECTOR, 0xB, 1), "ds": data, "es": data, "ss": data,
        "gdt": (GDT_GPA, 23), "idt": (IDT_GPA, 4 * 16 - 1),
        "cr3": PML4_GPA, "cr4": CR4_PAE | CR4_OSFXSR_OSXSAVE,
        "cr0": CR0_PE_ET_PG, "efer": EFER_LME_LMA,
    }  # fmt: skip


def _try_guest() -> tuple[bool, str]:
    kvm = open_kvm()
    memory = GuestMemory([(0, RAM)])
    vm = Vm(kvm)
    done_fd = os.eventfd(0, os.EFD_CLOEXEC)
    try:
        vm.map_memory(memory)
        vm.create_irqchip([0])
        vm.create_vcpus([0])
        vcpu = vm.vcpu_fds[0]
        cpuid = kvm.get_supported_cpuid()
        features = next(entry[5] for entry in cpuid if entry[0] == LEAF_FEATURES)
        program = [BREAKPOINT]
        if features & ECX_XSAVE:
            program += [SET_XCR0, XSAVE_XRSTOR]
        if features & ECX_CX16:
            program.append(CMPXCHG16B)
        sregs = _prepare(memory, bytes.fromhex("".join([*program, DONE])))
        if not features & ECX_XSAVE:
            sregs["cr4"] = CR4_PAE
        vcpu.set_cpuid2(cpuid)
        vcpu.set_sregs(sregs)
        vcpu.set_regs({"rip": CODE_GPA, "rsp": STACK_GPA, "rflags": 2})
        pio = Bus("ports")
        pio.attach(DONE_PORT, 1, _Done(), "done")
        loop = VcpuLoop(vcpu, pio, Bus("mmio"), done_fd)
        loop.start("probe")
        outcome = loop.join()
        if outcome == SHUTDOWN:
            return True, ""
        detail = loop.stop_detail().partition(", data")[0]
        return False, f"its KVM does not execute kernel code: {detail}"
    finally:
        vm.close()
        memory.close()
        kvm.close()
        os.close(done_fd)
