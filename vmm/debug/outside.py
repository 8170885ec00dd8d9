"""What hands a guest to tools from outside: ELF core files, and drgn over the live guest."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from vmm.debug.extras import need
from vmm.errors import GuestError
from vmm.guest.coredump import no_progress, write_core, write_frame
from vmm.guest.vmcoreinfo import find_vmcoreinfo
from vmm.light.printable import visible
from vmm.light.shown import Shown

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from vmm.debug.cpu import Cpu
    from vmm.debug.kernelsymbols import KernelSymbols
    from vmm.debug.ram import Ram
    from vmm.debug.runcontrol import RunControl
    from vmm.guest.coredump import Progress


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
            note = self._vmcoreinfo()
            return write_core(os.fspath(path), self.memory, self._registers(), note, progress)

    def _standing(self) -> AbstractContextManager[None]:
        return self._control.standing()

    def _registers(self) -> list[dict[str, Any]]:
        return [{**cpu.regs.as_dict(), **cpu.sregs.as_dict()} for cpu in self.cpus]

    def _vmcoreinfo(self) -> bytes | None:
        return find_vmcoreinfo(self.memory, self.cpus[0].memory.paging, self._symbols.get())

    def drgn(self) -> Any:
        """A drgn.Program over the live guest; ``load_debug_info([vmlinux])`` gives it types.

        Memory is read when drgn asks, so let the guest stand still for an answer of one moment; the
        registers that it shows are those of this call. HostError when drgn is not installed,
        GuestError when no Linux runs in the guest (yet).
        """
        drgn = need("drgn", "Guest.drgn()")
        with self._standing():
            note, registers = self._vmcoreinfo(), self._registers()
        if note is None:
            raise GuestError(
                "no VMCOREINFO in guest RAM: no Linux runs there (yet)", "let it boot before"
            )
        # A program is a kernel's only where drgn opens a core: one without RAM, and RAM beside it.
        program = drgn.Program()
        core = os.memfd_create("drgn", os.MFD_CLOEXEC)
        try:
            write_frame(core, self.memory.regions, registers, note)
        except BaseException:
            os.close(core)
            raise
        try:
            # The descriptor is drgn's from here on, whatever it says.
            program.set_core_dump(core)
        except Exception as error:
            raise GuestError(
                f"drgn does not take the guest's VMCOREINFO: {visible(error)}",
                "dump() keeps the guest for tools that ask less",
            ) from error
        for gpa, size in self.memory.regions:
            program.add_memory_segment(gpa, size, self._read_physical, True)
        return program

    def _read_physical(self, address: int, count: int, offset: int, physical: bool) -> bytes:
        return self.memory.read(address, count)
