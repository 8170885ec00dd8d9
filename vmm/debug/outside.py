"""What hands a guest to tools from outside: ELF core files, and drgn over the live guest."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from vmm.debug.extras import need
from vmm.guest.coredump import no_progress, write_core
from vmm.guest.vmcoreinfo import find_vmcoreinfo
from vmm.light.shown import Shown

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from vmm.debug.cpu import Cpu
    from vmm.debug.kernelsymbols import KernelSymbols
    from vmm.debug.ram import Ram
    from vmm.debug.runcontrol import RunControl
    from vmm.guest.coredump import Progress

HIGH_HALF = 1 << 63


class Outside(Shown):
    """What Guest is made of for other tools; the thread that drives the guest."""

    memory: Ram
    cpus: Sequence[Cpu]
    _control: RunControl
    _symbols: KernelSymbols

    def dump(self, path: str | os.PathLike[str], progress: Progress = no_progress) -> int:
        """Write the guest as an ELF core, for crash, drgn, gdb or volatility; its size in bytes.

        A note for each vCPU and VMCOREINFO, where a Linux has made it. ``progress(done, total)`` in
        bytes of RAM. HostError when it cannot be written; nothing of the file is left then.
        """
        with self._standing():
            cpus = [{**cpu.regs.as_dict(), **cpu.sregs.as_dict()} for cpu in self.cpus]
            return write_core(os.fspath(path), self.memory, cpus, self._vmcoreinfo(), progress)

    def _standing(self) -> AbstractContextManager[None]:
        return self._control.standing()

    def _vmcoreinfo(self) -> bytes | None:
        return find_vmcoreinfo(self.memory, self.cpus[0].memory.paging, self._symbols.get())

    def drgn(self) -> Any:
        """A drgn.Program over the live guest; ``load_debug_info([vmlinux])`` gives it types.

        It reads while the guest stands still; addresses are those of vCPU 0's page tables.
        HostError when drgn is not installed, or no Linux runs in the guest (yet).
        """
        drgn = need("drgn", "Guest.drgn()")
        with self._standing():
            note = self._vmcoreinfo()
        if note is None:
            from vmm.errors import GuestError

            raise GuestError(
                "no VMCOREINFO in guest RAM: no Linux runs there (yet)", "let it boot before"
            )
        platform = drgn.Platform(drgn.Architecture.X86_64)
        program = drgn.Program(platform, vmcoreinfo=note)
        for gpa, size in self.memory.regions:
            program.add_memory_segment(gpa, size, self._read_physical, True)
        program.add_memory_segment(HIGH_HALF, HIGH_HALF, self._read_virtual, False)
        return program

    def _read_physical(self, address: int, count: int, offset: int, physical: bool) -> bytes:
        return self.memory.read(address, count)

    def _read_virtual(self, address: int, count: int, offset: int, physical: bool) -> bytes:
        return self.cpus[0].memory.read(address, count)
