"""A running instance's guest as an ELF core: by the command, and by scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm.debug.attach.memory import Ahead, AskedMemory
from vmm.debug.attach.vcpu import RemoteVcpuFd
from vmm.errors import GuestError, HostError
from vmm.guest.coredump import no_progress, write_core
from vmm.guest.kernelimage import kernel_paging
from vmm.guest.pagetables import Paging
from vmm.guest.symbolat import DAMAGED
from vmm.guest.symbols import Symbols
from vmm.guest.vmcoreinfo import find_vmcoreinfo

if TYPE_CHECKING:
    from vmm.debug.attach.link import Link
    from vmm.guest.coredump import Progress
    from vmm.guest.pagetables import Memory


def dump(
    link: Link, memory: Memory, vcpus: int, path: str, progress: Progress = no_progress,
    live: bool = False,
) -> int:  # fmt: skip
    """Write ``path``; the file's size in bytes. The guest stands still meanwhile, unless ``live``.

    HostError when it cannot be written, or the guest was let go before the end: a request to stop
    it does that. Nothing of the file is left then.
    """
    # Before the guest stands still: this may look at all of its RAM.
    note = _vmcoreinfo(memory, _registers(link, 1)[0])
    if isinstance(memory, AskedMemory):
        memory = Ahead(memory)
    if live:
        return write_core(path, memory, _registers(link, vcpus), note, progress)
    before = held(link)
    link.ask("hold")
    try:
        still = StillHeld(link, progress)
        return write_core(path, memory, _registers(link, vcpus), note, still.progress)
    finally:
        if not before and not link.closed:
            link.ask("let_go")


def held(link: Link) -> bool:
    """Whether the guest stands still for this connection."""
    return link.ask("ping")[0].get("held") is True


class StillHeld:
    """Looks at the end whether the guest stood still all the time."""

    def __init__(self, link: Link, progress: Progress) -> None:
        self._link = link
        self._progress = progress

    def progress(self, done: int, total: int) -> None:
        """As the caller's; before the file takes its name HostError when the guest ran."""
        if done == total and not held(self._link):
            raise HostError(
                f"the instance {self._link.name}: the guest did not stand still to the end, as it "
                "is being stopped",
                "dump it before, or live",
            )
        self._progress(done, total)


def _registers(link: Link, vcpus: int) -> list[dict[str, Any]]:
    found = [RemoteVcpuFd(link, index).both() for index in range(vcpus)]
    return [{**regs, **sregs} for regs, sregs in found]


def _vmcoreinfo(memory: Memory, cpu: dict[str, Any]) -> bytes | None:
    """By the kernel's own symbols, out of RAM: no file that somebody else names is opened."""
    paging = Paging.of(cpu)
    symbols = None
    if paging.levels and kernel_paging(memory, paging)[1]:
        try:
            symbols = Symbols.from_ram(memory, paging)
        except (GuestError, *DAMAGED):
            symbols = None  # all RAM is searched then
    return find_vmcoreinfo(memory, paging, symbols)
