"""`vmm.attach(name)`: a running instance's guest in the hands of another process."""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from vmm.debug.attach import dumping
from vmm.debug.attach.cpu import AttachedCpu
from vmm.debug.attach.mapping import MappedMemory
from vmm.debug.attach.opening import Facts, attach_to, memory_of, same_user
from vmm.debug.attach.ram import AttachedRam
from vmm.debug.kernelsymbols import KernelSymbols
from vmm.debug.outside import Outside
from vmm.errors import HostError
from vmm.guest.coredump import no_progress
from vmm.light.teardown import close_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from vmm.debug.attach.link import Link
    from vmm.debug.attach.trace import AttachedTrace
    from vmm.guest.coredump import Progress
    from vmm.guest.symbols import Symbols


def attach(
    name: str | None = None,
    *,
    write: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Attached:
    """The guest of a running instance of this user's, which ``start`` runs in another process.

    ``name`` None: the one that the environment means, as for `status`. Nothing can be changed
    without ``write``. VmmError says why there is none: not known, not running, another user's,
    another version's, just rebooting.
    """
    from vmm.run.places import Places, name_meant
    from vmm.settings.config import read_environment

    if environment is None:
        environment = read_environment()
    folder = Places(environment).find(name_meant(environment, name))
    try:
        same_user(folder)
        return Attached(attach_to(folder, write), write)
    finally:
        folder.close()


class Attached(Outside):
    """A guest that runs in another process; a context manager, whose end lets the guest go.

    ``memory`` and ``cpus`` are those of a Guest. Any thread; requests go one after the other.
    Reading disturbs the guest for microseconds, pause() holds it until resume(), close() or the end
    of this process, and a request to stop it goes before all of these. HostError once it has
    rebooted or ended: attach again. What is in flight in its devices goes on while it is held.
    """

    def __init__(self, link: Link, write: bool = False) -> None:
        self.name = link.name
        self.write = write
        self._link = link
        self._held = False
        self._trace: AttachedTrace | None = None
        try:
            self._facts = facts = Facts(link)
            self._ram = memory_of(link, facts, partial(MappedMemory, writable=write))
            self.memory = AttachedRam(self._ram)
            self._symbols = KernelSymbols(facts.kernel, self.memory, lambda: self.cpus[0])
            held = partial(getattr, self, "_held")
            self.cpus = [
                AttachedCpu(link, index, self.memory, self._symbols, held, self._may_change)
                for index in range(facts.vcpus)
            ]
        except BaseException:
            link.close()
            raise

    # --- standing still ---

    def pause(self) -> None:
        """Let the guest stand still until resume(). HostError while it is being stopped."""
        if not self._held:
            self._link.ask("hold")
            self._held = True

    def resume(self) -> None:
        """Write changed registers, and let the guest go on. Does nothing when it is not held."""
        if not self._held:
            return
        try:
            for cpu in self.cpus:
                cpu.flush()
        finally:
            self._held = False
            for cpu in self.cpus:
                cpu.forget()
            if not self._link.closed:
                self._link.ask("let_go")

    def _may_change(self) -> None:
        if not self.write:
            raise HostError(
                f"the instance {self.name} is attached to read only", "attach with write=True"
            )
        if not self._held:
            raise HostError(
                f"the guest of the instance {self.name} runs",
                "pause() it before its registers are assigned",
            )

    @property
    def is_paused(self) -> bool:
        """Whether the guest stands still for this object: a request to stop it ends that."""
        self._held = self._held and dumping.held(self._link)
        return self._held

    @contextmanager
    def paused(self) -> Iterator[Attached]:
        """``with attached.paused():`` the guest stands still inside; it may do so before."""
        if self._held:
            yield self
            return
        self.pause()
        try:
            yield self
        finally:
            self.resume()

    def _standing(self) -> AbstractContextManager[Any]:
        return self.paused()

    # --- looking ---

    @property
    def symbols(self) -> Symbols:
        """The kernel's symbols: names to addresses and back; GuestError while there are none."""
        return self._symbols.require()

    @property
    def trace(self) -> AttachedTrace:
        """Exits of all vCPUs, as `Guest.trace`; it ends with this object."""
        if self._trace is None:
            from vmm.debug.attach.trace import AttachedTrace

            self._trace = AttachedTrace(self._link, self._facts.vcpus)
        return self._trace

    def dump(
        self,
        path: str | os.PathLike[str],
        progress: Progress = no_progress,
        live: bool = False,
    ) -> int:
        """Write the guest as an ELF core, for crash, drgn, gdb or volatility; its size in bytes.

        The guest stands still meanwhile, unless ``live``: then parts of it are of different
        moments. HostError when it cannot be written, or the guest was let go before its end.
        """
        vcpus = self._facts.vcpus
        return dumping.dump(self._link, self._ram, vcpus, os.fspath(path), progress, live)

    # --- life ---

    def close(self) -> None:
        """Let the guest go and give everything back. Idempotent."""
        steps: list[Callable[[], object]] = [self._resume_if_there]
        if self._trace is not None:
            steps.append(self._trace.stop)
        close_all([*steps, self._ram.close, self._link.close])

    def _resume_if_there(self) -> None:
        try:
            self.resume()
        except HostError:
            if not self._link.closed:
                raise

    def __enter__(self) -> Attached:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._link.closed else "held" if self._held else "running"
        rights = "to write" if self.write else "read-only"
        shared = "shared" if self._facts.shared else "private"
        return (
            f"<Attached {self.name}, {len(self.cpus)} CPUs, {self._facts.size >> 20} MiB {shared}, "
            f"{rights}, {state}>"
        )
