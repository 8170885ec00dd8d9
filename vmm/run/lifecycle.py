"""The life of an instance in this process: starting, running, stopping, stopped or failed.

One thread, the control thread, sleeps in an event loop and decides; vCPUs and I/O run on native
threads and only report. A guest's reboot builds a fresh machine over the same disks and consoles.
"""

from __future__ import annotations

import _signal
import gc
import os
import time

from vmm._native.host.posix import read_signalfd, signalfd
from vmm.errors import VmmError
from vmm.host.console import open_consoles
from vmm.host.disk import open_disks
from vmm.light.teardown import try_all
from vmm.log.hub import get_logger, hub
from vmm.log.sinks import time_stamp
from vmm.machine import build_machine
from vmm.run.bootwatch import BootWatch
from vmm.run.control import ControlServer, Keep
from vmm.run.ending import EXIT_DEVICE, EXIT_KILLED, Ending, ResetPolicy, ending_of
from vmm.run.eventloop import EventLoop
from vmm.run.outcome import outcome_of
from vmm.run.runner import Runner, watch_devices
from vmm.run.status import FAILED, RUNNING, STARTING, STOPPED, STOPPING, announce, run_facts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from vmm.confine.lockdown import Lockdown
    from vmm.host.console import HostConsole
    from vmm.host.disk import Disk
    from vmm.machine import Machine
    from vmm.run.attach.door import Attachments
    from vmm.run.debugtrail import ExitRates
    from vmm.run.eventloop import Timer
    from vmm.run.instance import Instance
    from vmm.run.notify import Notifier
    from vmm.run.outcome import Outcome
    from vmm.settings.config import Config

log = get_logger(__name__)

SIGNALS = (
    _signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP, _signal.SIGWINCH, _signal.SIGCONT,
)  # fmt: skip
# A guest that is still booting misses the button, so it is pressed again until it is heard.
BUTTON_SECONDS = 1.0
# How soon a job that comes to the foreground has its terminal.
TERMINAL_SECONDS = 0.5
# What comes so soon after a request to stop is the same request: timeout(1) signals the process and
# its group, a service manager the process that `stop` has just asked.
SAME_REQUEST_SECONDS = 1.0
# So long a reader of the consoles may take before the log goes on without them.
FLUSH_SECONDS = 0.2


class Lifecycle:
    """One run of one instance, from open disks to the exit code. Control thread only.

    The caller has taken the instance's lock and releases it after close().
    """

    def __init__(
        self, config: Config, instance: Instance, notifier: Notifier, cache_directory: str | None
    ) -> None:
        self.config = config
        self.instance = instance
        self.notifier = notifier
        self.cache_directory = cache_directory
        self.state = STARTING
        self.machine: Machine | None = None
        self.reboots = 0
        self.started = time.monotonic()
        self.started_at = time_stamp()
        self._machine_started = self.started
        self._machine_left = False
        # What `status` told of the last machine, for the time when there is none.
        self._machine_facts: dict[str, Any] = {}
        self._resets = ResetPolicy()
        self.ending: Ending | None = None
        # A guest has run: there is something to tell about it.
        self.ran = False
        self._stop_reason = ""
        self._stop_asked = 0.0
        self._failed_device = ""
        self._device_signals: list[int] = []
        self._button: Timer | None = None
        self._watch: BootWatch | None = None
        self._rates: ExitRates | None = None
        self.loop = EventLoop()
        self._signals = signalfd(SIGNALS)
        self._escape = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.loop.add(self._signals, self._on_signal)
        self.loop.add(self._escape, self._on_escape)
        self.disks: list[Disk] = []
        self.consoles: list[HostConsole] = []
        self._control: ControlServer | None = None
        self.attached: Attachments | None = None  # from other processes, once one has asked
        # Called once, with the first machine, as soon as its guest runs.
        self.on_running: Callable[[Machine], None] | None = None
        # Lets the guest run; a debugger, which may hold it as well, takes its place.
        self.runner: Runner = Runner()
        self.oem_strings: list[str] = []  # for the guest, in SMBIOS
        self.lockdown: Lockdown  # given by its maker, and entered before a guest runs
        self._terminal_timer: Timer | None = None
        self._closed = False
        self._feed()

    def run(self) -> int:
        """Run the guest until it ends or is told to; returns the exit code. Raises VmmError."""
        try:
            self._open()
            while self.ending is None:
                self._boot()
                self.loop.run_until(lambda: self._machine_left or self.ending is not None)
                self._leave()
        except VmmError as error:
            if self.ending is None:
                self.ending = Ending(error.exit_code, str(error))
            raise
        return self.ending.code

    def _open(self) -> None:
        self.disks = open_disks(self.config.system_images, self.config.config_images)
        self.consoles = open_consoles(self.config, self._escape)
        for console, name in zip(self.consoles, ("console", "serial"), strict=True):
            console.start(name)
        self._take_terminal()
        self._control = ControlServer(self.instance.socket_path, self.loop, self._on_request)

    def _take_terminal(self) -> None:
        """Have the terminal raw whenever this job has it; a shell's `fg` sends no signal."""
        if self._terminal_timer is not None:
            self._terminal_timer.cancel()
        if [console for console in self.consoles if not console.take_terminal()]:
            self._terminal_timer = self.loop.call_later(TERMINAL_SECONDS, self._take_terminal)

    def _boot(self) -> None:
        """Build a machine and let it run."""
        console, serial = self.consoles
        self._machine_left = False
        self.notifier.status(f"booting {self.config.kernel_path}")
        self.machine = machine = build_machine(
            self.config, self.disks, console, serial, self.cache_directory,
            self.notifier.progress, oem_strings=self.oem_strings, kept=self.lockdown.kept,
        )  # fmt: skip
        self.loop.add(self.runner.left_fd(machine), self._on_left)
        self._device_signals = watch_devices(
            machine, self.loop, self._on_device_wanted, self._on_device_error
        )
        first = self.reboots == 0
        if first:
            announce(self, machine, before=True)
        if self.config.gdb is None:
            # Else one that stands still is nothing to tell about.
            self._watch = BootWatch(machine, self.config, self.consoles, self.loop)
        if log.debugging:
            from vmm.run import debugtrail

            debugtrail.tell_machine(machine)
            self._rates = debugtrail.ExitRates(machine, self.loop)
        self.lockdown.enter(machine, self.instance)
        self.runner.start(machine, self.lockdown.lock_calls)
        self.ran = True
        self.lockdown.running()
        if first:
            self._once_running(machine)
        gc.enable()
        self._machine_started = time.monotonic()
        if self.state == STARTING:
            self.state = RUNNING
        self.notifier.ready(self._running())
        self._save()

    def _once_running(self, machine: Machine) -> None:
        """What the first guest need not wait for."""
        if self.on_running is not None:
            self.on_running(machine)
        announce(self, machine, before=False)

    def _running(self) -> str:
        """One line about the guest for the service manager."""
        config = self.config
        text = f"{self.state}: {config.cpu_count} vCPUs, {config.memory.size >> 20} MiB"
        return f"{text}, reboots: {self.reboots}" if self.reboots else text

    def _feed(self) -> None:
        """Feed the manager's watchdog from the event loop, so that a loop that hangs misses it."""
        if self.notifier.watchdog_seconds:
            self.notifier.feed()
            self.loop.call_later(self.notifier.watchdog_seconds, self._feed)

    def _on_device_wanted(self, bdf: str) -> None:
        """Its driver is being unbound, or the device removed: the host waits until we let go."""
        if self.state != STOPPING:
            self.request_stop(f"the host wants the device {bdf} back")

    def _on_device_error(self, bdf: str) -> None:
        """What the device did since then cannot be trusted, so the guest does not go on."""
        log.error(f"the device {bdf} reports an error that it cannot recover from; see dmesg")
        self._failed_device = bdf
        if self.state != STOPPING:
            self.request_stop(f"the device {bdf} failed")

    def _on_left(self) -> None:
        if self.runner.killed:
            self.request_stop("by the debugger", now=True)
        self._machine_left = True

    def _leave(self) -> None:
        """Take the machine apart and decide what comes next."""
        machine = self.machine
        if machine is None:
            return
        self.loop.remove(self.runner.left_fd(machine))
        self.runner.let_go()
        outcome = outcome_of(machine) if self.ending is None else None
        lived = time.monotonic() - self._machine_started
        if log.debugging and outcome is not None:
            log.debug(f"the machine ended by {outcome.kind}: {outcome.reason}; lived {lived:.3f} s")
        # Whatever fails from here on, the guest's own end counts.
        for error in try_all([lambda: self._take_apart(machine)]):
            log.warning(f"the machine left something behind: {error}")
        if outcome is not None:
            self._decide(outcome, lived)

    def _take_apart(self, machine: Machine) -> None:
        for fd in self._device_signals:
            self.loop.remove(fd)
        self._device_signals = []
        if self._watch is not None:
            self._watch.stop()
        if self._rates is not None:
            self._rates.stop()
        try:
            self._machine_facts = machine.status()
        except OSError as error:
            log.warning(f"the last state of the machine is not known: {error}")
        self.machine = None
        if self.attached is not None:
            self.attached.close("the guest has rebooted or ended")
            self.attached = None
        # Giving much pinned RAM back takes its time.
        self.notifier.feed()
        machine.close()
        self.notifier.feed()
        for console in self.consoles:
            console.flush(FLUSH_SECONDS)

    def _decide(self, outcome: Outcome, lived: float) -> None:
        """End, or go on with a fresh machine."""
        if outcome.kind == "reset" and self.state != STOPPING:
            self.ending = self._resets.refuse(outcome, lived)
            if self.ending is None:
                self._reboot(outcome, lived)
        else:
            self.ending = ending_of(outcome, lived, self._failed_device)

    def _reboot(self, outcome: Outcome, lived: float) -> None:
        self.reboots += 1
        log.info(f"{outcome.reason} after {lived:.1f} s; reboot {self.reboots}")
        if outcome.report:
            log.debug(outcome.report)
        delay = self._resets.delay()
        if delay:
            waited: list[bool] = []
            self.loop.call_later(delay, lambda: waited.append(True))
            self.loop.run_until(lambda: bool(waited) or self._stop_reason != "")
        if self._stop_reason:
            reason = f"{outcome.reason}; not started again: {self._stop_reason}"
            self.ending = Ending(0, reason)

    def request_stop(self, reason: str, now: bool = False) -> None:
        """Ask the guest to shut down; asked again, or with ``now``, end it at once."""
        if now or self.state == STOPPING:
            self._kill(f"the guest was killed: {reason}")
            return
        self._stop_reason = reason
        self.state = STOPPING
        if self.attached is not None:
            self.attached.hold_no_more("it is being stopped")
        log.info(
            f"stopping ({reason}): power button pressed; the guest has "
            f"{self.config.stop_timeout_seconds:g} s"
        )
        self.notifier.stopping(
            "stopping: waiting for the guest to shut down", self.config.stop_timeout_seconds
        )
        self.loop.call_later(self.config.stop_timeout_seconds, self._on_stop_timeout)
        self._press_button()
        self._save()
        self._stop_asked = time.monotonic()

    def _same_request(self) -> bool:
        """The guest has been asked to shut down a moment ago."""
        return self.state == STOPPING and time.monotonic() - self._stop_asked < SAME_REQUEST_SECONDS

    def _press_button(self) -> None:
        if self.machine is not None and self.ending is None:
            self.machine.power_button()
            self._button = self.loop.call_later(BUTTON_SECONDS, self._press_button)

    def _on_stop_timeout(self) -> None:
        self._kill(
            f"the guest did not shut down within {self.config.stop_timeout_seconds:g} s and "
            "was killed"
        )

    def _kill(self, reason: str) -> None:
        if self.ending is None:
            log.warning(reason)
            self.ending = Ending(EXIT_DEVICE if self._failed_device else EXIT_KILLED, reason)

    def _on_signal(self) -> None:
        for number in read_signalfd(self._signals):
            if number == _signal.SIGHUP:
                self._reopen()
            elif number == _signal.SIGCONT:
                self._take_terminal()
            elif number == _signal.SIGWINCH:
                if self.machine is not None:
                    self.machine.resize(*self.consoles[0].size())
            else:
                name = "SIGTERM" if number == _signal.SIGTERM else "SIGINT"
                if not self._same_request():
                    self.request_stop(f"{name} received")

    def _reopen(self) -> None:
        # A reload is possible while the guest runs only.
        reload = self.state == RUNNING
        if reload:
            self.notifier.reloading()
        hub.reopen()
        for console in self.consoles:
            try:
                console.reopen()
            except VmmError as error:
                log.warning(str(error))
        log.info("SIGHUP received: logs reopened")
        if reload:
            self.notifier.ready(self._running())

    def _on_escape(self) -> None:
        for _ in range(os.eventfd_read(self._escape)):
            self.request_stop("Ctrl-A x typed on the console")

    def _on_request(self, request: dict[str, Any]) -> dict[str, Any] | Keep:
        """Answer one request of the control socket."""
        from vmm.run.requests import answer

        return answer(self, request)

    def status(self) -> dict[str, Any]:
        """Everything `status` shows."""
        facts = run_facts(self)
        facts.update(self._machine_facts if self.machine is None else self.machine.status())
        return facts

    def _save(self) -> None:
        try:
            self.instance.write_state(self.status())
        except OSError as error:
            log.warning(f"cannot write {self.instance.state_path}: {error.strerror}")

    def close(self) -> None:
        """Close everything in reverse order, with the final state written; idempotent.

        Never fails: the guest's own end is what counts, and what cannot be closed is told.
        """
        if self._closed:
            return
        self._closed = True
        if self.ending is None:
            self.ending = Ending(VmmError.exit_code, "the VMM failed")
        self.state = FAILED if self.ending.code else STOPPED
        reason = f"{self.state}: {self.ending.reason}"
        steps: list[Callable[[], object]] = [lambda: self.notifier.stopping(reason, 0)]
        steps.append(self.runner.close)
        if self.attached is not None:
            steps.append(self.attached.close)
        if self.machine is not None:
            steps.append(self.machine.close)
        steps.append(self.lockdown.close)
        steps += [console.close for console in reversed(self.consoles)]
        steps.append(self._save)
        if self._control is not None:
            steps.append(self._control.close)
        steps += [disk.close for disk in reversed(self.disks)]
        steps.append(self.loop.close)
        steps += [lambda: os.close(self._escape), lambda: os.close(self._signals)]
        for error in try_all(steps):
            log.warning(f"at the end: {error}")
