"""A vCPU of a running instance's guest, as a script sees it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from vmm.debug.attach.vcpu import RemoteVcpuFd
from vmm.debug.cpu import Cpu
from vmm.debug.cpumemory import CpuMemory
from vmm.debug.registers import Regs, Sregs, _Registers
from vmm.errors import VmmError
from vmm.guest.pagetables import PageFault
from vmm.vcpu import linear_address

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.debug.attach.link import Link
    from vmm.debug.kernelsymbols import KernelSymbols
    from vmm.debug.ram import Ram
    from vmm.vcpu import Vcpu


class _Live(_Registers):
    """Read anew each time while the guest runs; while it is held read once, and assignable."""

    __slots__ = ("_check",)

    def __init__(self, get: Any, put: Any, held: Callable[[], bool], check: Any) -> None:
        """``check`` raises when nothing may be assigned."""
        super().__init__(get, put, cast("Callable[[], None]", held))
        object.__setattr__(self, "_check", check)

    def _load(self) -> dict[str, Any]:
        values = super()._load()
        if not self._still():
            self.forget()
        return values

    def __setattr__(self, name: str, value: Any) -> None:
        self._check()
        super().__setattr__(name, value)


class LiveRegs(_Live, Regs):
    """General registers: rax to r15, rip, rflags; 64 bits each. Source: api.rst, KVM_GET_REGS."""

    __slots__ = ()


class LiveSregs(_Live, Sregs):
    """Control registers, efer, apic_base, segments and tables. Source: api.rst, KVM_GET_SREGS."""

    __slots__ = ()


class AttachedCpu(Cpu):
    """vCPU number ``index``. Any thread may read; while the guest runs each look pauses it shortly.

    Assigned registers count when the guest goes on: only with ``write=True``, and while it is held.
    """

    def __init__(
        self,
        link: Link,
        index: int,
        ram: Ram,
        symbols: KernelSymbols,
        held: Callable[[], bool],
        check: Callable[[], None],
    ) -> None:
        """``held``: it stands still; ``check`` raises when nothing of it may be changed."""
        fd = RemoteVcpuFd(link, index)
        vcpu = cast("Vcpu", SimpleNamespace(fd=fd, index=index))
        super().__init__(vcpu, ram, symbols, lambda: None)
        self._both = fd.both
        self.regs = LiveRegs(fd.get_regs, fd.set_regs, held, check)
        self.sregs = LiveSregs(fd.get_sregs, fd.set_sregs, held, check)
        self.memory = CpuMemory(ram, self.sregs, symbols.resolve)
        self._held = held

    @property
    def address(self) -> int:
        """The linear address of the next instruction."""
        if self._held():
            return linear_address(self.regs, self.sregs)
        return linear_address(*self._both())

    def translate(self, address: int) -> int | None:
        """The gpa behind a linear address, by the page tables; None when it is not mapped."""
        try:
            return self.memory.translate(address)
        except PageFault:
            return None

    def __repr__(self) -> str:
        try:
            return f"<cpu {self.index} at {self.address:#x}>"
        except VmmError:
            return f"<cpu {self.index}, out of reach>"
