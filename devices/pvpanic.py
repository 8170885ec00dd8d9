"""The port that a guest's kernel tells its panic to, as on QEMU and Cloud Hypervisor.

Source: Linux, include/uapi/misc/pvpanic.h and drivers/misc/pvpanic.
"""

from __future__ import annotations

from vmm._native.kvm import bus
from vmm.log.hub import get_logger

log = get_logger(__name__)

PANICKED = 1 << 0
CRASH_LOADED = 1 << 1


class PvPanic:
    """One byte: reads say which events are understood, a write reports one.

    ``panicked`` says afterwards why the machine was told to shut down.
    """

    def __init__(self) -> None:
        self.panicked = False

    def read(self, offset: int, size: int) -> int:
        """Both events."""
        return PANICKED | CRASH_LOADED if size == 1 else (1 << 8 * size) - 1

    def write(self, offset: int, value: int, size: int) -> int:
        """A panic ends the machine; one with a crash kernel loaded goes on in that one."""
        if size == 1 and value & CRASH_LOADED:
            log.warning("the guest's kernel panicked; its crash kernel takes over")
        elif size == 1 and value & PANICKED:
            self.panicked = True
            return bus.SHUTDOWN
        return bus.CONTINUE

    def state(self) -> dict[str, object]:
        """Whether a panic was told."""
        return {"version": 1, "panicked": self.panicked}

    def set_state(self, state: object) -> None:
        """A state() again; StateError when it does not fit."""
        from vmm.light.state import flag, read_state

        self.panicked = read_state("panic port", state, {"panicked": flag})["panicked"]
