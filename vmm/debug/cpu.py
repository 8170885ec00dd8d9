"""One vCPU as a script sees it, while it stands still."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from vmm._native.kvm.vcpustate import linear_rip
from vmm.debug.cpumemory import CpuMemory
from vmm.debug.ram import ADDRESS_MASK, by_page
from vmm.debug.registers import Regs, Sregs
from vmm.guest.backtrace import FRAMES_MAX, backtrace
from vmm.light.shown import Shown
from vmm.vcpu import linear_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from vmm.debug.disassembly import Listing
    from vmm.debug.kernelsymbols import KernelSymbols
    from vmm.debug.ram import Ram
    from vmm.guest.backtrace import Frame
    from vmm.vcpu import Vcpu

# The legacy area of XSAVE (SDM 1, 10.5.1).
FPU_WORDS = struct.Struct("<HH")
MXCSR = struct.Struct("<I")
MXCSR_AT, ST_AT, XMM_AT = 24, 32, 160


class Msrs(Shown):
    """``msrs[index]``: one model-specific register, 64 bits. Source: api.rst, KVM_GET_MSRS."""

    def __init__(self, vcpu: Vcpu, still: Callable[[], None]) -> None:
        self._vcpu = vcpu
        self._still = still

    def __getitem__(self, index: int) -> int:
        self._check(index)
        found = self._vcpu.fd.get_msrs([index])
        if not found:
            raise KeyError(f"MSR {index:#x}: KVM has no such register")
        return found[0]

    def __setitem__(self, index: int, value: int) -> None:
        self._check(index)
        if not isinstance(value, int) or not 0 <= value < 1 << 64:
            raise ValueError(f"MSR {index:#x}={value!r}: an integer of 64 bits is needed")
        if self._vcpu.fd.set_msrs([(index, value)]) != 1:
            raise ValueError(f"MSR {index:#x}: KVM refuses the value {value:#x}")

    def _check(self, index: object) -> None:
        self._still()
        if not isinstance(index, int) or not 0 <= index < 1 << 32:
            raise ValueError(f"MSR {index!r}: a number below 2^32 is needed")

    def __repr__(self) -> str:
        return f"<MSRs of cpu {self._vcpu.index}>"


class Cpu(Shown):
    """vCPU number ``index``. The thread that drives the guest, while the guest stands still.

    ``regs`` and ``sregs`` are read once and written back before the guest runs; ``msrs`` at once.
    """

    def __init__(
        self,
        vcpu: Vcpu,
        ram: Ram,
        symbols: KernelSymbols,
        still: Callable[[], None],
    ) -> None:
        self.vcpu = vcpu
        self.index = vcpu.index
        self._still = still
        self._address: int | None = None
        fd = vcpu.fd
        self.regs = Regs(fd.get_regs, fd.set_regs, still)
        self.sregs = Sregs(fd.get_sregs, fd.set_sregs, still)
        self.msrs = Msrs(vcpu, still)
        self.memory = CpuMemory(ram, self.sregs, symbols.resolve)
        self._symbols = symbols

    @property
    def address(self) -> int:
        """The linear address of the next instruction."""
        if self._address is None and not self.regs.known and not self.sregs.known:
            self._still()
            self._address = linear_rip(self.vcpu.fd)
        elif self._address is None or self.regs.changed or self.sregs.changed:
            self._address = linear_address(self.regs, self.sregs)
        return self._address

    def stopped_at(self, address: int) -> None:
        """KVM told where it stands: no registers have to be read for that."""
        self._address = address

    def translate(self, address: int) -> int | None:
        """The gpa behind a linear address, as KVM sees it; None when it is not mapped."""
        return self.vcpu.fd.translate(address & ADDRESS_MASK)

    def pages(self, address: int, length: int) -> Iterator[tuple[int, int]]:
        """(gpa, size) of a linear range, page by page; ValueError where nothing is mapped."""
        for part, size in by_page(address, length):
            gpa = self.translate(part)
            if gpa is None:
                raise ValueError(f"nothing is mapped at {part:#x}")
            yield gpa, size

    @property
    def xsave(self) -> bytes:
        """x87, SSE and further state as XSAVE writes it: 4096 bytes (SDM 1, 13.4); assignable.

        Of what is assigned the parts count whose bits are set in XSTATE_BV (byte 512).
        """
        self._still()
        return self.vcpu.fd.get_xsave()

    @xsave.setter
    def xsave(self, area: bytes) -> None:
        self._still()
        self.vcpu.fd.set_xsave(area)

    @property
    def fpu(self) -> dict[str, Any]:
        """x87 and SSE: fcw, fsw, mxcsr, ``st`` (8 x 10 bytes) and ``xmm`` (16 integers)."""
        area = self.xsave
        fcw, fsw = FPU_WORDS.unpack_from(area, 0)
        (mxcsr,) = MXCSR.unpack_from(area, MXCSR_AT)
        return {
            "fcw": fcw, "fsw": fsw, "mxcsr": mxcsr,
            "st": [area[ST_AT + 16 * n : ST_AT + 16 * n + 10] for n in range(8)],
            "xmm": [
                int.from_bytes(area[XMM_AT + 16 * n : XMM_AT + 16 * n + 16], "little")
                for n in range(16)
            ],
        }  # fmt: skip

    @property
    def events(self) -> dict[str, Any]:
        """Exceptions, interrupts and NMIs under way (api.rst, KVM_GET_VCPU_EVENTS); assignable."""
        self._still()
        return self.vcpu.fd.get_vcpu_events()

    @events.setter
    def events(self, values: Mapping[str, Any]) -> None:
        self._still()
        self.vcpu.fd.set_vcpu_events(values)

    @property
    def lapic(self) -> bytearray:
        """A copy of the local APIC's register page: 1024 bytes (SDM 3A, 11.4.1)."""
        self._still()
        return self.vcpu.fd.get_lapic()

    @lapic.setter
    def lapic(self, page: bytes | bytearray) -> None:
        self._still()
        self.vcpu.fd.set_lapic(page)

    def backtrace(self, limit: int = FRAMES_MAX) -> list[Frame]:
        """The frames of what runs there, its own first: address, symbol, sp.

        By the kernel's ORC tables where it has them, else by frame pointers.
        """
        return backtrace(self.regs.as_dict(), self.memory.read, self._symbols.get(), limit)

    def disassemble(self, n: int = 8, where: str | int | None = None) -> Listing:
        """``n`` instructions from ``where`` (None: the next one) on: address, bytes, text, symbol.

        Fewer where the code is not mapped. Needs capstone: HostError says how to get it.
        """
        from vmm.debug.disassembly import code_bits, disassemble

        start = self.address if where is None else self._symbols.resolve(where)
        bits = code_bits(self.sregs.as_dict())
        return disassemble(self.memory.read, start, n, bits, self._symbols.at)

    def flush(self) -> None:
        """Write changed registers to the vCPU."""
        self.sregs.flush()
        self.regs.flush()
        self._address = None

    def forget(self) -> None:
        """The vCPU got another state: nothing read or changed here counts."""
        self.sregs.forget()
        self.regs.forget()
        self._address = None

    def __repr__(self) -> str:
        try:
            return f"<cpu {self.index} at {self.address:#x}>"
        except (RuntimeError, OSError):
            return f"<cpu {self.index}, not standing still>"
