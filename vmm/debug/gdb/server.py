"""GdbServer: gdb's remote protocol over a Guest of a script's."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vmm.debug.gdb.door import Door
from vmm.debug.gdb.session import DETACHED, ENDED, INTERRUPTED, KILLED, VANISHED, Session
from vmm.debug.gdb.target import GdbTarget
from vmm.log.hub import get_logger
from vmm.run.outcome import Outcome
from vmm.settings.gdb import WAIT, parse_gdb

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Protocol

    from vmm.debug.breakpoints import Breakpoints
    from vmm.debug.cpu import Cpu
    from vmm.debug.gdb.client import Client
    from vmm.debug.ram import Ram
    from vmm.debug.runcontrol import RunControl
    from vmm.debug.stop import Stop
    from vmm.machine import Machine

    class Guest(Protocol):
        """What is asked of a script's Guest."""

        machine: Machine
        memory: Ram
        points: Breakpoints

        @property
        def cpus(self) -> Sequence[Cpu]:
            """Its vCPUs."""

        @property
        def running(self) -> bool:
            """Some thread lets it run."""

        @property
        def outcome(self) -> Outcome | None:
            """How it ended."""

        def start(self) -> None:
            """Let it run in the background."""

        def pause(self) -> Stop | None:
            """Make it stand still."""


log = get_logger(__name__)

# So long a run of the script's own may take to hear that it shall come back.
TAKE_SECONDS = 5.0
LOOK_SECONDS = 0.01


class GdbServer:
    """Listens from the beginning; serves on a thread of its own (start()) or on serve()'s caller.

    A guest that runs is paused when a debugger has said its first word, and stands still until it
    says how to go on. After a detach, or when the debugger is gone without one, the guest runs in
    the background as after ``guest.start()``; another debugger may attach then. ``kill`` ends the
    guest. One that has crashed can be looked at. Meanwhile the script cannot run or step it.
    """

    def __init__(self, guest: Guest, control: RunControl, address: str) -> None:
        where = parse_gdb(address)
        if where.wait:
            raise ValueError(f"{address!r}: a guest of a script's waits anyway, without {WAIT!r}")
        self._guest = guest
        self._control = control
        self._thread: threading.Thread | None = None
        self._serving = threading.Lock()
        self._closing = False
        self._door = Door(where, self._wake)
        # How the newest visit ended, and what an action of the script's raised in it.
        self.last_end: str | None = None
        self.failure: BaseException | None = None

    @property
    def address(self) -> str:
        """What ``target remote`` takes; with the port that port 0 has become."""
        return str(self._door.address)

    @property
    def attached(self) -> bool:
        """A debugger holds the guest."""
        client = self._door.client
        return client is not None and not client.over

    def start(self) -> None:
        """Serve one debugger after the other on a thread of the server's."""
        self._thread = threading.Thread(target=self._serve_all, name="gdb", daemon=True)
        self._thread.start()

    def serve(self) -> str | None:
        """Serve the next debugger on the calling thread, from its call to its end.

        How that was: detached, vanished, killed, ended (the guest) or interrupted (Ctrl-C in the
        script, after which the guest stands still); None when the server was closed. What an
        action or a hook raised comes out of here.
        """
        if self._thread is not None:
            raise RuntimeError("the server has a thread of its own: guest.gdb(..., thread=False)")
        end = self._serve_one()
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        return end

    def _serve_all(self) -> None:
        while not self._closing:
            try:
                self._serve_one()
            except Exception as error:
                log.error(f"gdb: {error!r}")

    def _serve_one(self) -> str | None:
        with self._serving:
            client = self._wait()
            if client is None:
                return None
            try:
                with self._driving():
                    end = self._visit(client)
            finally:
                self._door.dismiss(client)
        if end in (DETACHED, VANISHED) and not self._closing and self._guest.outcome is None:
            self._guest.start()
        return end

    def _wait(self) -> Client | None:
        """Ctrl-C ends the wait."""
        return self._door.wait(lambda: self._closing)

    def _visit(self, client: Client) -> str:
        guest = self._guest
        target = GdbTarget(guest.cpus, guest.memory, guest.points, self._control)
        session = Session(client, target, stays=True)
        self.last_end = end = session.serve()
        self.failure = session.failure
        if end == KILLED and guest.outcome is None:
            guest.machine.stop_vcpus()
            self._control.outcome = Outcome("shutdown", "killed by the debugger")
        return end

    @contextmanager
    def _driving(self) -> Iterator[None]:
        """Take the guest, paused if it runs. RuntimeError when its script does not let go."""
        guest, deadline = self._guest, time.monotonic() + TAKE_SECONDS
        if guest.outcome is not None:
            yield
            return
        while True:
            if guest.running:
                guest.pause()
            try:
                driving = self._control.driving()
                driving.__enter__()
                break
            except RuntimeError:
                if guest.outcome is not None or time.monotonic() > deadline:
                    raise
                time.sleep(LOOK_SECONDS)
        try:
            yield
        finally:
            driving.__exit__(None, None, None)

    def _wake(self) -> None:
        client = self._door.client
        if client is not None and client.interrupted():
            self._control.driver.wake()

    def close(self) -> None:
        """Hang up and serve no more; the guest stands still then. Idempotent."""
        if self._closing:
            return
        self._closing = True
        client = self._door.client
        if client is not None:
            client.end("the server is closed")
            self._control.driver.wake()
        self._door.nudge()
        if self._thread is not None:
            self._thread.join()
        with self._serving:
            self._door.close()

    def __enter__(self) -> GdbServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closing else "attached" if self.attached else "waiting"
        return f"<gdb at {self.address}, {state}>"


__all__ = ["DETACHED", "ENDED", "INTERRUPTED", "KILLED", "VANISHED", "GdbServer"]
