"""`stop`: the power button by whichever way there is, the guest's full time, and force at last."""

from __future__ import annotations

import _signal
import time

from vmm.command.facts import UNEXPLAINED, last_exit, number
from vmm.command.output import complain
from vmm.errors import VmmError
from vmm.light.printable import visible
from vmm.run.ending import EXIT_KILLED
from vmm.run.folder import wait_unlocked
from vmm.run.status import STOPPING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.run.folder import Folder
    from vmm.run.process import Process

# A starting instance has no control socket yet.
SOCKET_WAIT_SECONDS = 10.0
# So long an instance may take to answer before it is asked by a signal.
ANSWER_SECONDS = 3.0
# How much longer than the guest's own time a stop waits before it kills a VMM that hangs.
GRACE_SECONDS = 5.0
STOP_TIMEOUT_DEFAULT = 25.0
STOP_TIMEOUT_MAX = 86400.0
TOLD_EACH_SECONDS = 3.0
# SIGKILL works at once, unless the kernel itself waits for something.
KILL_SECONDS = 10.0


def stop(folder: Folder, now: bool = False) -> tuple[int, str]:
    """Stop an instance and wait for its end: (exit code, what happened)."""
    if not folder.running:
        return 0, f"{folder.name}: not running"
    process = folder.process()
    stopping = Stopping(folder, process)
    try:
        return stopping.run(now)
    finally:
        if process is not None:
            process.close()


class Stopping:
    """One `stop`, from the request to the end of the process. It tells on stderr how far it is."""

    def __init__(self, folder: Folder, process: Process | None) -> None:
        self.folder = folder
        self.process = process
        self._owner = folder.owner()

    def run(self, now: bool) -> tuple[int, str]:
        """(exit code, what happened)."""
        if self.process is None:
            self.tell(self.folder.unseen)
        timeout = self.request(now)
        waited = self.wait(timeout)
        return self.result(now) if waited is None else self.kill(waited, now)

    def request(self, now: bool) -> float:
        """Ask for the end; returns the seconds that the guest gets."""
        why = self._ask(now)
        if isinstance(why, float):
            return why
        timeout = self._timeout(self.folder.state().get("stop_timeout_s"))
        if self.process is None:
            self.tell(f"{why}, and no signal can be sent to it from here")
            return timeout
        if now:
            self.tell(f"{why}: killing process {self.process.pid}")
            self.process.send(_signal.SIGKILL)
            return KILL_SECONDS
        if self.folder.state().get("state") == STOPPING:
            # It has been asked before: a second signal would kill the guest.
            self.tell(f"{why}; the guest is shutting down already")
            return timeout
        self.tell(f"{why}: process {self.process.pid} is asked by SIGTERM")
        self.process.send(_signal.SIGTERM)
        return timeout

    def _ask(self, now: bool) -> float | str:
        """By the control socket: the seconds that the guest gets, or why that did not work."""
        deadline = time.monotonic() + SOCKET_WAIT_SECONDS
        if held := self._held():
            return held
        while True:
            try:
                answer = self.folder.ask({"command": "stop", "now": now}, ANSWER_SECONDS)
            except (FileNotFoundError, ConnectionRefusedError) as error:
                # One that has told its state had a socket.
                gone = self.folder.state() or not self.folder.running
                if gone or time.monotonic() > deadline:
                    return f"its control socket does not work ({visible(error.strerror or error)})"
                time.sleep(0.05)
            except OSError as error:
                # It may have been suspended in the meantime: stopping takes a moment.
                silent = f"it does not answer ({visible(error.strerror or error)})"
                return self._held() or silent
            else:
                if "error" in answer:
                    return f"it refuses: {visible(answer['error'], 200)}"
                return 0.0 if now else self._timeout(answer.get("timeout_s"))

    def _timeout(self, said: object) -> float:
        return number(said, 0.0, STOP_TIMEOUT_MAX, STOP_TIMEOUT_DEFAULT)

    def wait(self, timeout: float) -> float | None:
        """None when it ended in time, else how long that was; tells each few seconds."""
        began = time.monotonic()
        waited = 0.0
        while not self._ended(min(self._limit(timeout) - waited, TOLD_EACH_SECONDS)):
            waited = time.monotonic() - began
            limit = self._limit(timeout)
            if waited >= limit:
                return limit
            self.tell(self._progress(waited, timeout))
        return None

    def _limit(self, timeout: float) -> float:
        """With time to take the machine apart, which one that is suspended does not do."""
        return timeout if self._held() else timeout + GRACE_SECONDS

    def _held(self) -> str:
        """What keeps the process from doing anything."""
        held = self.process.held() if self.process is not None else ""
        return f"process {self.process.pid} {held}" if self.process is not None and held else ""

    def _progress(self, waited: float, timeout: float) -> str:
        text = f"waiting for the guest to shut down, {waited:.0f} of {timeout:g} s"
        if waited > timeout:
            text = f"the guest's {timeout:g} s are over, waiting for the VMM to end"
        held = self._held()
        return f"{text}; {held}" if held else text

    def _ended(self, seconds: float) -> bool:
        if self.process is not None:
            return self.process.wait(seconds)
        return wait_unlocked(self.folder, seconds)

    def kill(self, waited: float, now: bool) -> tuple[int, str]:
        """It did not end in time."""
        name = self.folder.name
        if self.process is None:
            raise VmmError(
                f"{name}: still runs after {waited:g} s, and cannot be killed from here: "
                f"{self.folder.unseen}",
                "stop it where it runs",
            )
        pid, unit = self.process.pid, self.process.unit()
        self.process.send(_signal.SIGKILL)
        if not self.process.wait(KILL_SECONDS):
            raise VmmError(
                f"{name}: process {pid} has not ended {KILL_SECONDS:g} s after SIGKILL",
                "the kernel holds it: see its log (dmesg)",
            )
        text = f"{name}: process {pid} did not end within {waited:g} s and was killed"
        if unit:
            text += f"; its service may be started again: systemctl stop {visible(unit, 100)}"
        return 0 if now else EXIT_KILLED, text

    def result(self, now: bool) -> tuple[int, str]:
        """It ended: how, by its own last word."""
        state = self.folder.state() if self.folder.owner() == self._owner else {}
        last = last_exit(state)
        if last is None or last["code"] is None:
            if self.folder.gone:
                return 0, f"{self.folder.name}: its start failed"
            if now:
                return 0, f"{self.folder.name}: killed"
            return EXIT_KILLED, f"{self.folder.name}: {UNEXPLAINED}"
        code = 0 if now else last["code"]
        return code, f"{self.folder.name}: stopped: {last['reason']}"

    def tell(self, text: str) -> None:
        """A line on stderr."""
        complain([f"{self.folder.name}: {visible(text)}"])
