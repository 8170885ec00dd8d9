"""gdb for a service's instance: serves beside the control thread, over one machine after the other.

The instance's own thread goes on with its control socket, its timers and its watchdog while the
guest stands still.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from vmm._native.kvm import bus
from vmm.debug.driver import Several
from vmm.debug.gdb.door import Door
from vmm.debug.gdb.session import ENDED, KILLED, Session
from vmm.debug.gdb.target import GdbTarget
from vmm.debug.held import Held
from vmm.debug.kernelsymbols import KernelSymbols
from vmm.log.hub import get_logger
from vmm.run.outcome import Outcome
from vmm.run.runner import Runner

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.debug.gdb.client import Client
    from vmm.guest.symbols import Symbols
    from vmm.machine import Machine
    from vmm.settings.gdb import GdbAddress

log = get_logger(__name__)

KINDS = {bus.RESET: "reset", bus.SHUTDOWN: "shutdown", bus.ERROR: "error"}


class ServiceGdb(Runner):
    """Made once for a process; start(), let_go() and close() belong to the control thread."""

    def __init__(self, address: GdbAddress) -> None:
        self._wait = address.wait
        self._held: Held | None = None
        self._thread: threading.Thread | None = None
        self._leaving = False
        self.killed = False
        self._left_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self._door = Door(address, self._wake)
        except BaseException:
            os.close(self._left_fd)
            raise

        log.info(f"gdb may call at {self._door.address}")

    def left_fd(self, machine: Machine) -> int:
        """One for all machines: the vCPUs' own tells of breakpoints, too."""
        return self._left_fd

    def start(self, machine: Machine, first: Callable[[], None]) -> None:
        """Let the guest run, or wait for a debugger first; in place of ``machine.start()``."""
        first()
        self._leaving = False
        self._held = Held(
            machine, symbols=_Nameless, run_driver=Several(machine), outcome_of=_outcome
        )
        self._thread = threading.Thread(target=self._drive, args=(self._held,), name="gdb")
        self._thread.start()
        machine.mark("running")
        machine.memory.settle()

    def let_go(self) -> None:
        """The machine is about to be taken apart: nothing of ours uses it afterwards."""
        if self._held is None or self._thread is None:
            return
        self._leaving = True
        client = self._door.client
        if client is not None:
            client.end("the machine is gone")
        self._door.nudge()
        self._held.control.driver.wake()
        self._thread.join()
        self._held.close()
        self._held = None
        with suppress(BlockingIOError):
            os.eventfd_read(self._left_fd)

    def close(self) -> None:
        """Listen no more. Idempotent by its owner."""
        self.let_go()
        self._door.close()
        os.close(self._left_fd)

    def status(self) -> dict[str, object]:
        """Facts for `status`."""
        client = self._door.client
        attached = client is not None and not client.over
        return {"address": str(self._door.address), "attached": attached}

    def _wake(self) -> None:
        """Somebody calls, or wants the guest to stand still."""
        held = self._held
        if held is not None:
            held.control.driver.wake()

    # --- the thread that drives ---

    def _drive(self, held: Held) -> None:
        try:
            with held.control.driving():
                if self._wait:
                    log.info(f"the guest waits at its entry point for gdb at {self._door.address}")
                    self._visit(held, self._door.wait(lambda: self._leaving))
                while not self._over(held):
                    held.control.run(None, self._wanted, looks=False)
                    if not self._over(held):
                        self._visit(held, self._door.client)
        except Exception as error:
            log.error(f"gdb: the guest cannot be driven any more: {error!r}")
        if not self._leaving:
            os.eventfd_write(self._left_fd, 1)

    def _over(self, held: Held) -> bool:
        return self._leaving or self.killed or held.control.outcome is not None

    def _wanted(self) -> bool:
        return self._leaving or self._door.client is not None

    def _visit(self, held: Held, client: Client | None) -> None:
        if client is None:
            return
        log.info("gdb attached: the guest stands still")
        target = GdbTarget(held.cpus, held.memory, held.points, held.control)
        try:
            end = Session(client, target).serve()
        finally:
            self._door.dismiss(client)
        self.killed = end == KILLED
        if end != ENDED:
            log.info(f"gdb {end}" + ("" if self.killed else ": the guest goes on"))


class _Nameless(KernelSymbols):
    """gdb has names of its own: nothing is read out of the kernel for a stop."""

    def get(self) -> Symbols | None:
        """None."""
        return None


def _outcome(machine: Machine) -> Outcome:
    """In few words: the others are stopped, and the report is made, by the machine's owner."""
    for vcpu in machine.vcpus:
        kind = vcpu.loop.outcome
        if kind == bus.SHUTDOWN and machine.pvpanic.panicked:
            return Outcome("panic", "the guest's kernel panicked")
        if kind != bus.CONTINUE:
            return Outcome(KINDS.get(kind, "crash"), vcpu.loop.stop_detail())
    return Outcome("error", "the vCPUs stopped without a reason")
