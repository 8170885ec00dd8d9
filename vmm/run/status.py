"""What `status` tells of a run, beside the facts of its machine."""

from __future__ import annotations

import os
import time

from vmm import __version__
from vmm.host.processes import process_start_time
from vmm.log.hub import get_logger
from vmm.log.sinks import time_stamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from vmm.confine.lockdown import Lockdown
    from vmm.host.console import HostConsole
    from vmm.host.disk import Disk
    from vmm.machine import Machine
    from vmm.run.ending import Ending
    from vmm.run.instance import Instance
    from vmm.run.runner import Runner
    from vmm.settings.config import Config

    class Attached(Protocol):
        """Who looks at its guest from another process."""

        def status(self) -> dict[str, object]:
            """Facts about them."""

    class Run(Protocol):
        """What is read of the run that is told about."""

        config: Config
        instance: Instance
        state: str
        started: float
        started_at: str
        disks: list[Disk]
        consoles: list[HostConsole]
        reboots: int
        ending: Ending | None
        lockdown: Lockdown
        runner: Runner

        @property
        def attached(self) -> Attached | None:
            """Who looks at its guest, once somebody has."""


log = get_logger(__name__)

SCHEMA_VERSION = 1
STARTING = "starting"
RUNNING = "running"
STOPPING = "stopping"
STOPPED = "stopped"
FAILED = "failed"
ENDED_STATES = (STOPPED, FAILED)
STATES = (STARTING, RUNNING, STOPPING, *ENDED_STATES)


def _shares_output(config: Config) -> bool:
    """Whether the log may go where a console of the guest's goes: a stream, a device, a file."""
    files = (config.console.path, config.serial.path)
    shared = [where for where in config.log_destinations if where in files or where[:5] == "/dev/"]
    return bool(shared)


def announce(run: Run, machine: Machine, before: bool) -> None:
    """Tell the log that the instance runs; asked ``before`` the guest runs, and once it does.

    It is told before where the guest's words go to the same place, else when nobody waits for it.
    """
    config = run.config
    if before != _shares_output(config):
        return
    log.info(
        f"instance {run.instance.name} runs as process {os.getpid()}: {config.kernel_path}, "
        f"{config.cpu_count} vCPUs, {config.memory.size >> 20} MiB, "
        f"{len(run.disks)} disks; built in {machine.phases['loaded']} ms"
    )
    for console, name in zip(run.consoles, ("console", "serial port"), strict=True):
        if console.path:
            log.info(f"{name} at {console.path}")
    if log.debugging:
        log.debug(f"phases of the start, ms: {machine.phases}")


def run_facts(run: Run) -> dict[str, Any]:
    """State, process, settings in use and host ends of a run. Control thread."""
    config = run.config
    return {
        "schema_version": SCHEMA_VERSION,
        "version": __version__,
        "name": run.instance.name,
        "state": run.state,
        "pid": os.getpid(),
        "start_time": process_start_time(os.getpid()),
        "started_at": run.started_at,
        "uptime_s": round(time.monotonic() - run.started, 3),
        "kernel": config.kernel_path,
        "initramfs": config.initramfs_path,
        "cmdline": config.cmdline,
        "disks": [disk.status() for disk in run.disks],
        "consoles": [console.status() for console in run.consoles],
        "sockets": {"control": run.instance.socket_path},
        "stop_timeout_s": config.stop_timeout_seconds,
        "confinement": run.lockdown.status(),
        "gdb": run.runner.status(),
        "attached": None if run.attached is None else run.attached.status(),
        "reboots": run.reboots,
        "last_exit": _last_exit(run.ending),
    }


def _last_exit(ending: Ending | None) -> dict[str, Any] | None:
    if ending is None:
        return None
    return {"code": ending.code, "reason": ending.reason, "time": time_stamp()}
