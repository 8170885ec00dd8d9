"""The registers that gdb sees, in its order, and where each of them is in a vCPU.

Those of gdb's own features i386.core, i386.sse and i386.segments come first; then the system
registers, which ``info registers cr3`` shows.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from vmm.debug.cpu import MXCSR_AT, ST_AT, XMM_AT

if TYPE_CHECKING:
    from vmm.debug.cpu import Cpu

CORE = "org.gnu.gdb.i386.core"
SSE = "org.gnu.gdb.i386.sse"
SEGMENT_BASES = "org.gnu.gdb.i386.segments"
SYSTEM = "org.vllmd-hypervisor.system"
KERNEL_GS_BASE = 0xC0000102
# The legacy part of an XSAVE area, as FXSAVE writes it, and its header (SDM 1, 10.5 and 13.4).
FPR_STEP, XMM_BYTES = 16, 16
FPU_FIELDS = {
    "fctrl": (0, "H"), "fstat": (2, "H"), "fop": (6, "H"), "fioff": (8, "I"), "fooff": (16, "I"),
    "mxcsr": (MXCSR_AT, "I"),
}  # fmt: skip
FTW_AT = 4
XSTATE_BV = 512
X87_AND_SSE = 3
EMPTY = 3


class Register:
    """``bits`` wide, of gdb's ``type``, in ``feature``; read and written by ``kind``."""

    def __init__(self, name: str, bits: int, kind: str, feature: str, type_: str) -> None:
        self.name = name
        self.bytes = bits // 8
        self.kind = kind
        self.feature = feature
        self.type = type_


def _core() -> list[Register]:
    general = (
        "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12",
        "r13", "r14", "r15",
    )  # fmt: skip
    pointers = {"rbp": "data_ptr", "rsp": "data_ptr"}
    found = [Register(n, 64, "general", CORE, pointers.get(n, "int64")) for n in general]
    found.append(Register("rip", 64, "general", CORE, "code_ptr"))
    found.append(Register("eflags", 32, "flags", CORE, "i386_eflags"))
    segments = ("cs", "ss", "ds", "es", "fs", "gs")
    found += [Register(n, 32, "selector", CORE, "int32") for n in segments]
    found += [Register(f"st{n}", 80, "fpr", CORE, "i387_ext") for n in range(8)]
    fpu = ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")
    return found + [Register(n, 32, "fpu", CORE, "int") for n in fpu]


def _others() -> list[Register]:
    found = [Register(f"xmm{n}", 128, "xmm", SSE, "vec128") for n in range(16)]
    found.append(Register("mxcsr", 32, "fpu", SSE, "i386_mxcsr"))
    found += [Register(f"{n}_base", 64, "base", SEGMENT_BASES, "int64") for n in ("fs", "gs")]
    found.append(Register("k_gs_base", 64, "msr", SYSTEM, "int64"))
    system = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")
    return found + [Register(n, 64, "system", SYSTEM, "int64") for n in system]


REGISTERS = (*_core(), *_others())
ALL_BYTES = sum(register.bytes for register in REGISTERS)


class RegisterFile:
    """One vCPU's registers as gdb numbers them. The thread that drives the guest."""

    def __init__(self, cpu: Cpu) -> None:
        self._cpu = cpu
        # The FPU's registers, read once for all of them.
        self._area: bytes | None = None

    def read(self, number: int) -> bytes:
        """One register, little-endian; IndexError for a number that there is not."""
        register = REGISTERS[number]
        return bytes(getattr(self, f"_get_{register.kind}")(register.name, register.bytes))

    def read_all(self) -> bytes:
        """All of them, in order."""
        self._area = self._cpu.vcpu.fd.get_xsave()
        try:
            return b"".join([self.read(number) for number in range(len(REGISTERS))])
        finally:
            self._area = None

    def write(self, number: int, data: bytes) -> None:
        """Into the vCPU at once. OSError when KVM refuses, ValueError for a wrong size."""
        register = REGISTERS[number]
        if len(data) != register.bytes:
            raise ValueError(f"{register.name} has {register.bytes} bytes, not {len(data)}")
        getattr(self, f"_set_{register.kind}")(register.name, data)
        self._cpu.flush()

    def write_all(self, data: bytes) -> None:
        """Those that differ from what they are."""
        if len(data) != ALL_BYTES:
            raise ValueError(f"all registers have {ALL_BYTES} bytes, not {len(data)}")
        for number, register in enumerate(REGISTERS):
            own, data = data[: register.bytes], data[register.bytes :]
            if own != self.read(number):
                self.write(number, own)

    def _get_general(self, name: str, size: int) -> bytes:
        return int(self._cpu.regs[name]).to_bytes(size, "little")

    def _set_general(self, name: str, data: bytes) -> None:
        self._cpu.regs[name] = int.from_bytes(data, "little")

    def _get_flags(self, name: str, size: int) -> bytes:
        return self._get_general("rflags", 8)[:size]

    def _set_flags(self, name: str, data: bytes) -> None:
        self._set_general("rflags", data)

    def _get_system(self, name: str, size: int) -> bytes:
        return int(self._cpu.sregs[name]).to_bytes(size, "little")

    def _set_system(self, name: str, data: bytes) -> None:
        self._cpu.sregs[name] = int.from_bytes(data, "little")

    def _get_selector(self, name: str, size: int) -> bytes:
        return int(self._cpu.sregs[name]["selector"]).to_bytes(size, "little")

    def _set_selector(self, name: str, data: bytes) -> None:
        # Only what is visible: base, limit and rights stay, as no instruction has loaded it.
        value = int.from_bytes(data, "little")
        if value > 0xFFFF:
            raise ValueError(f"{name}={value:#x}: a selector has 16 bits")
        self._set_segment(name, "selector", value)

    def _get_base(self, name: str, size: int) -> bytes:
        return int(self._cpu.sregs[name[:2]]["base"]).to_bytes(size, "little")

    def _set_base(self, name: str, data: bytes) -> None:
        self._set_segment(name[:2], "base", int.from_bytes(data, "little"))

    def _set_segment(self, name: str, field: str, value: int) -> None:
        self._cpu.sregs[name] = {**self._cpu.sregs[name], field: value}

    def _get_msr(self, name: str, size: int) -> bytes:
        return self._cpu.msrs[KERNEL_GS_BASE].to_bytes(size, "little")

    def _set_msr(self, name: str, data: bytes) -> None:
        self._cpu.msrs[KERNEL_GS_BASE] = int.from_bytes(data, "little")

    # --- the FPU ---

    def _xsave(self) -> bytes:
        return self._cpu.vcpu.fd.get_xsave() if self._area is None else self._area

    def _get_fpr(self, name: str, size: int) -> bytes:
        at = ST_AT + int(name[2:]) * FPR_STEP
        return self._xsave()[at : at + size]

    def _set_fpr(self, name: str, data: bytes) -> None:
        self._put(ST_AT + int(name[2:]) * FPR_STEP, data)

    def _get_xmm(self, name: str, size: int) -> bytes:
        at = XMM_AT + int(name[3:]) * XMM_BYTES
        return self._xsave()[at : at + size]

    def _set_xmm(self, name: str, data: bytes) -> None:
        self._put(XMM_AT + int(name[3:]) * XMM_BYTES, data)

    def _get_fpu(self, name: str, size: int) -> bytes:
        fpu = self._xsave()
        value = 0  # fiseg and foseg: 64-bit code has no such segments
        if name == "ftag":
            value = sum([EMPTY << 2 * n for n in range(8) if not fpu[FTW_AT] >> n & 1])
        elif name in FPU_FIELDS:
            at, form = FPU_FIELDS[name]
            (value,) = struct.unpack_from(f"<{form}", fpu, at)
        return value.to_bytes(size, "little")

    def _set_fpu(self, name: str, data: bytes) -> None:
        value = int.from_bytes(data, "little")
        if name == "ftag":
            self._put(FTW_AT, bytes([sum([(value >> 2 * n & 3 != EMPTY) << n for n in range(8)])]))
        elif name in FPU_FIELDS:
            at, form = FPU_FIELDS[name]
            mask = (1 << 8 * struct.calcsize(form)) - 1
            self._put(at, struct.pack(f"<{form}", value & mask))

    def _put(self, at: int, data: bytes) -> None:
        area = bytearray(self._cpu.vcpu.fd.get_xsave())
        area[at : at + len(data)] = data
        area[XSTATE_BV] |= X87_AND_SSE  # else they count as never used
        self._cpu.vcpu.fd.set_xsave(bytes(area))


def number_of(name: str) -> int | None:
    """Gdb's number of a register; None for no such name."""
    for number, register in enumerate(REGISTERS):
        if register.name == name:
            return number
    return None


def shown(cpu: Cpu, name: str) -> Any:
    """A register's value as a number."""
    number = number_of(name)
    return None if number is None else int.from_bytes(RegisterFile(cpu).read(number), "little")
