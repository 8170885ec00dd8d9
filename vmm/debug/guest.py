"""Guest: a VM that a Python script holds."""

from __future__ import annotations

import os
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

from vmm.debug import stop
from vmm.debug.caller import Caller
from vmm.debug.consoles import KeptConsole
from vmm.debug.device import attach_devices, connect_devices, split_devices
from vmm.debug.fork import remake, wake
from vmm.debug.held import Held
from vmm.debug.hooking import Hooking
from vmm.debug.hooks import Hooks
from vmm.debug.keywords import config_of_environment, config_of_keywords
from vmm.debug.outside import Outside
from vmm.debug.runcontrol import LOOK_SECONDS, deadline_of
from vmm.debug.snapshotting import Snapshotting
from vmm.host.console import HostConsole
from vmm.host.overlay import open_overlays
from vmm.host.preflight import check_host, check_roles
from vmm.light.teardown import close_all
from vmm.machine import build_machine

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from vmm.debug.device import Device
    from vmm.debug.gdb.server import GdbServer
    from vmm.debug.points import Action, Condition, Point
    from vmm.debug.snapshot import Snapshot
    from vmm.debug.stats import Stats
    from vmm.debug.stop import Stop
    from vmm.debug.trace import Trace
    from vmm.guest.symbols import Symbols
    from vmm.host.disk import Disk
    from vmm.machine import Machine
    from vmm.settings.config import Config


class Guest(Hooking, Snapshotting, Outside):
    """A VM, standing still at its entry point; a context manager.

    The keywords are the service's settings (``kernel``, ``system_image``, ``config_image``,
    ``cpu_count``, ``memory``, ``devices``, ``cmdline``, ``initramfs``, ``serial``, ``console``,
    ``gpudirect_clique``); only ``kernel`` is required. ``devices`` takes objects and classes of
    PciDevice and VirtioDevice as well. Images are only read: what the guest writes stays in
    memory. ConfigError, HostError and the like have the
    command's words. One thread drives a guest; any thread may call pause() and read RAM.
    """

    def __init__(self, **settings: Any) -> None:
        devices = split_devices(settings)
        config, kept = config_of_keywords(settings)
        self._build(config, kept, devices=devices)

    @classmethod
    def from_env(cls, environment: Mapping[str, str] | None = None) -> Guest:
        """A guest by the service's variables; None: those of this process.

        Consoles that no variable names are kept in ``serial`` and ``console``.
        """
        if environment is None:
            from vmm.settings.config import read_environment

            environment = read_environment()
        guest = cls.__new__(cls)
        guest._build(*config_of_environment(environment))
        return guest

    def _build(
        self, config: Config, kept: set[str], snapshot: Snapshot | None = None,
        devices: Sequence[Device] = (),
    ) -> None:  # fmt: skip
        self.config = config
        self._closed = False
        self._background: threading.Thread | None = None
        self._gdb_servers: list[GdbServer] = []
        self._trace: Trace | None = None
        self.last_stop: Stop | None = None
        self._disks: list[Disk] = []
        self._taker = None
        self._consoles: list[KeptConsole | HostConsole] = []
        self._devices = devices
        self._caller = Caller()
        try:
            if snapshot is None:
                check_roles(config)
                check_host(config)
            self.console = self._open_console("console", kept)
            self.serial = self._open_console("serial", kept)
            self.machine: Machine
            if snapshot is None:
                self._disks = open_overlays(config.system_images, config.config_images)
                self.machine = build_machine(
                    config, self._disks, self.console, self.serial,
                    more=partial(attach_devices, devices, self._caller),
                )  # fmt: skip
            else:
                self._disks, self.machine = remake(snapshot, self.console, self.serial)
            self.machine.memory.settle()
            self._hold()
            if snapshot is not None:
                self._symbols.share(snapshot.family.symbols)
                wake(self.machine, self._snapshots(), snapshot)
        except BaseException:
            self.close()
            raise

    def _open_console(self, name: str, kept: set[str]) -> Any:
        console: KeptConsole | HostConsole
        if name in kept:
            console = KeptConsole(name)
            console.run_until = self._run_until
        else:
            end = getattr(self.config, name)
            console = HostConsole(end.kind, end.path, -1, end)
        self._consoles.append(console)
        if isinstance(console, HostConsole):
            console.start(name)
        return console

    def _hold(self) -> None:
        held = Held(self.machine, self._open)
        self.memory, self.cpus, self.points = held.memory, held.cpus, held.points
        self._symbols, self._control = held.symbols, held.control
        self._patches, self._pages = held.patches, held.pages
        self._hooks = Hooks(self.machine, self.cpus, self._caller, held.stop_port)
        connect_devices(self._devices, self, self._caller)
        for console in self._consoles:
            if isinstance(console, KeptConsole):
                self._control.driver.listen(console.port)

    # --- run control ---

    def run(self, until: str | int | None = None, seconds: float | None = None) -> Stop:
        """Let all vCPUs run until something stops them, ``until`` (a symbol or a linear address)
        is reached, or ``seconds`` have passed.

        What an action or a hook raises comes out of here; the guest is intact and can go on.
        """
        self._open()
        with self._control.driving():
            deadline = deadline_of(seconds)
            if isinstance(until, str) and self._symbols.get() is None:
                early = self._come_to_kernel(deadline)
                if early is not None:
                    return early
            point = None if until is None else self._add_point(until, None, None, None)
            try:
                return self._control.run(deadline)
            finally:
                if point is not None:
                    point.remove()

    def _come_to_kernel(self, deadline: float | None) -> Stop | None:
        from vmm.debug.kernelstart import come_to_kernel

        path, control = self.config.kernel_path, self._control
        return come_to_kernel(path, control, self.points, self.cpus[0], self._symbols, deadline)

    def step(self, count: int = 1, cpu: int = 0) -> Stop:
        """``count`` instructions of one vCPU, the others standing still."""
        self._open()
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"count={count!r}: a number of instructions, at least one")
        if not isinstance(cpu, int) or not 0 <= cpu < len(self.cpus):
            raise ValueError(f"cpu={cpu!r}: this guest has 0 to {len(self.cpus) - 1}")
        with self._control.driving():
            return self._control.step(self.cpus[cpu], count)

    def start(self) -> None:
        """Let it run in the background, until pause() or a stop, which is then ``last_stop``."""
        self._open()
        if self.running:
            raise RuntimeError("the guest runs already")
        self.last_stop = None
        self._failure: BaseException | None = None
        ready = threading.Event()
        self._background = threading.Thread(
            target=self._run_in_background, args=(ready,), name="guest", daemon=True
        )
        self._background.start()
        ready.wait()

    def _run_in_background(self, ready: threading.Event) -> None:
        try:
            with self._control.driving():
                ready.set()
                self.last_stop = self._control.run(None)
        except BaseException as error:
            self._failure = error
        finally:
            ready.set()

    def pause(self) -> Stop | None:
        """Make a running guest stand still; what its run came back with. Any other thread."""
        if self.running:
            self._control.ask(stop.PAUSED)
        return self.wait()

    def wait(self, seconds: float | None = None) -> Stop | None:
        """Wait for the end of a run in the background; its Stop, or None when it still runs.

        What an action or a hook raised there comes out of here.
        """
        thread = self._background
        if thread is not None:
            thread.join(seconds)
            if thread.is_alive():
                return None
            self._background = None
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
        return self.last_stop

    @property
    def running(self) -> bool:
        """True while some thread lets it run."""
        return not self._closed and self._control.busy

    def _run_until(self, found: Callable[[], bool], seconds: float | None) -> None:
        """Let it run (or go on in the background) until ``found()`` or the time is over."""
        self._open()
        if self.running:
            self._watch_background(found, deadline_of(seconds))
            return
        with self._control.driving():
            last = self._control.run(deadline_of(seconds), found)
        if last.kind not in (stop.PAUSED, stop.TIMEOUT) and not found():
            raise RuntimeError(f"the guest stopped before: {last}")

    def _watch_background(self, found: Callable[[], bool], deadline: float | None) -> None:
        import select
        import time

        poll = select.poll()
        for console in self._consoles:
            if isinstance(console, KeptConsole):
                poll.register(console.port.ready_fd, select.POLLIN)
        while not found() and self.running:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return
            poll.poll(1000 * (LOOK_SECONDS if left is None else min(left, LOOK_SECONDS)))

    # --- symbols and breakpoints ---

    @property
    def symbols(self) -> Symbols:
        """The kernel's symbols: names to addresses and back; GuestError while there are none."""
        return self._symbols.require()

    def breakpoint(
        self,
        where: str | int,
        action: Action | None = None,
        *,
        hardware: bool | None = None,
        condition: str | Condition | None = None,
    ) -> Any:
        """Stop at ``where`` (a symbol or a linear address), before that instruction.

        ``action(cpu)`` runs with all vCPUs standing still; vmm.STOP makes run() return, anything
        else lets the guest go on. Without one run() returns; as a decorator it names the action.
        """
        self._open()
        return self._add_point(where, action, hardware, condition)

    def watch(
        self,
        address: str | int,
        size: int,
        access: str = "w",
        action: Action | None = None,
        *,
        condition: str | Condition | None = None,
    ) -> Any:
        """Stop behind an instruction that writes (or with ``access="rw"`` reads) those bytes."""
        self._open()
        if access not in ("w", "rw"):
            raise ValueError(f"access={access!r}: 'w' for writes, 'rw' for writes and reads")
        where = self._symbols.resolve(address)
        return self.points.watch(where, self._label(address), size, access, action, condition)

    def _add_point(
        self, where: str | int, action: Action | None, hardware: bool | None, condition: Any
    ) -> Point:
        address = self._symbols.resolve(where)
        return self.points.add(address, self._label(where), action, hardware, condition)

    def _label(self, where: str | int) -> str | None:
        return where if isinstance(where, str) else self._symbols.at(where)

    # --- what it does ---

    @property
    def trace(self) -> Trace:
        """Exits of all vCPUs in native rings, off until its start(). Any thread."""
        if self._trace is None:
            from vmm.debug.trace import Trace

            self._open()
            self._trace = Trace(self.machine, os.path.basename(self.config.kernel_path))
        return self._trace

    def stats(self) -> Stats:
        """What KVM itself counted, also of exits that do not come to us. Any thread."""
        from vmm.debug.stats import read_stats

        self._open()
        return read_stats(self.machine)

    # --- gdb ---

    def gdb(self, address: str = "127.0.0.1:1234", *, thread: bool = True) -> GdbServer:
        """Serve gdb (``target remote``) at an address on loopback, or at a unix socket's path.

        A thread of the server's drives the guest while gdb is attached: see GdbServer. Without
        ``thread`` nothing happens until somebody calls ``serve()``. HostError when the address is
        in use; ValueError when it is none, or not loopback.
        """
        from vmm.debug.gdb import server as gdb_server

        self._open()
        server = gdb_server.GdbServer(self, self._control, address)
        self._gdb_servers.append(server)
        if thread:
            server.start()
        return server

    # --- life ---

    def _open(self) -> None:
        if self._closed:
            raise RuntimeError("the guest is closed")

    def close(self) -> None:
        """End the guest and give everything back; what consoles heard stays. Idempotent."""
        if self._closed:
            return
        for server in self._gdb_servers:
            server.close()
        if hasattr(self, "_control") and self.running:
            self.pause()
        self._closed = True
        steps: list[Callable[[], object]] = []
        if self._taker is not None:
            steps.append(self._taker.close)
        if self._trace is not None:
            steps.append(self._trace.stop)
        if hasattr(self, "machine"):
            steps.append(self.machine.close)
        if hasattr(self, "_control"):
            steps.append(self._control.driver.close)
        steps += [console.close for console in reversed(self._consoles)]
        steps += [disk.close for disk in reversed(self._disks)]
        close_all(steps)

    def __enter__(self) -> Guest:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._closed:
            state = "closed"
        elif self.running:
            state = "running"
        elif self.outcome is not None:
            state = f"ended: {self.outcome.kind}"
        else:
            state = "standing still"
        kernel = os.path.basename(self.config.kernel_path)
        return f"<Guest {kernel}, {len(self.cpus)} CPUs, {self.memory.size >> 20} MiB, {state}>"
