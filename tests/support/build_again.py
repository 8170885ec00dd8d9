"""Builds a machine, runs its guest and takes it apart, each time a line comes, as reboots do.

Answers in one line of JSON: what was raised, how the guest ended, and what was left behind.
"""

from __future__ import annotations

import gc
import json
import select
import sys
from pathlib import Path

from tests.support.vfio_faults import Holdings
from vmm.errors import VmmError
from vmm.host.console import HostConsole
from vmm.host.disk import open_disks
from vmm.log.hub import hub
from vmm.machine import build_machine
from vmm.run.outcome import outcome_of
from vmm.settings.config import Config, read_environment

# A guest whose disk or power button has failed waits for ever.
SECONDS = 3


class Lines:
    """A sink that keeps what the log is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, level: int, name: str, message: str, fields: object = ()) -> None:
        self.lines.append(message)

    def reopen(self) -> None:
        """Nothing is open."""

    close = reopen


def once(config: Config, disks: list, console: HostConsole) -> dict[str, str]:
    """Each failure by its text and the class of it."""
    try:
        machine = build_machine(config, disks, console, console)
        try:
            machine.start()
            poll = select.poll()
            poll.register(machine.outcome_fd, select.POLLIN)
            if not poll.poll(SECONDS * 1000):
                return {"end": "none"}
            return {"end": outcome_of(machine).kind}
        finally:
            machine.close()
    except (VmmError, OSError, MemoryError) as error:
        return {"error": str(error), "class": type(error).__name__}


def main() -> None:
    config = Config.from_env(read_environment())
    disks = open_disks(config.system_images, config.config_images)
    console = HostConsole("null")
    kept = Lines()
    hub.configure([kept], debug=False)
    for _ in range(5):
        once(config, disks, console)
    kept.lines.clear()
    gc.collect()
    before = Holdings()
    print("ready", flush=True)
    for _ in sys.stdin:
        told: dict[str, object] = dict(once(config, disks, console))
        gc.collect()
        # Threads' stacks, of which the C library keeps some.
        now = Holdings()
        told["left"], before = now.more_than(before, slack=24 << 20), now
        told["threads"] = len(list(Path("/proc/self/task").iterdir()))
        told["log"] = kept.lines[:]
        kept.lines.clear()
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
