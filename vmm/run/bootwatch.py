"""Watches a guest at boot, and says where it stands when nothing happens.

A guest that hangs before its first message shows an operator nothing at all. So for the first two
minutes the boot vCPU is looked at every few seconds. Progress is output, disk requests, an exit at
an address not seen before, or code of a page not seen before; a processor that waits for an
interrupt with interrupts on is not stuck. After that time nothing wakes up any more.
"""

from __future__ import annotations

import time

from vmm.log.hub import get_logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.host.console import HostConsole
    from vmm.machine import Machine
    from vmm.run.eventloop import EventLoop, Timer
    from vmm.settings.config import Config

log = get_logger(__name__)

STEP_SECONDS = 5.0
STILL_SECONDS = 20.0
WATCH_SECONDS = 120.0
# A look takes several samples a short while apart. Code is told apart by lines of 16 bytes: a loop
# that waits has a handful, which are soon known; one that works, such as a kernel that unpacks
# itself, has so many that some sample is new for a long time.
SAMPLES = 5
SAMPLE_GAP_SECONDS = 0.002
LINE_SHIFT = 4


class BootWatch:
    """Watches one machine from now on until stop(). Control thread only.

    Made before the guest runs: what it says from then on counts as said at this boot.
    """

    def __init__(
        self, machine: Machine, config: Config, consoles: Sequence[HostConsole], loop: EventLoop
    ) -> None:
        self._machine = machine
        self._config = config
        self._consoles = consoles
        self._loop = loop
        self._started = self._moved = time.monotonic()
        self._done = 0
        self._exits: set[tuple[int, str, int, bool]] = set()
        self._lines: set[int] = set()
        self._said: list[int] = [console.port.guest_bytes for console in consoles]
        self._timer: Timer | None = loop.call_later(STEP_SECONDS, self._look)

    def stop(self) -> None:
        """Look no more; idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        now = time.monotonic()
        self._timer = None
        if self._progress():
            self._moved = now
        elif now - self._moved >= STILL_SECONDS:
            self._tell(now - self._moved)
            return
        if now - self._started < WATCH_SECONDS:
            self._timer = self._loop.call_later(STEP_SECONDS, self._look)
        else:
            self._tell_hidden()

    def _progress(self) -> bool:
        """Whether anything happened since the last look."""
        done = self._machine.activity() + sum([c.port.guest_bytes for c in self._consoles])
        exits = {
            (vcpu.index, name, address, is_write)
            for vcpu in self._machine.vcpus
            for name, address, _, is_write, _ in vcpu.loop.last_exits()
        }
        moved = done != self._done or not exits <= self._exits
        self._done = done
        self._exits |= exits
        return self._runs_on() or moved

    def _runs_on(self) -> bool:
        """Whether the boot vCPU executes code not seen before, waits as it should, or is held."""
        if self._machine.vcpus[0].held:
            return True
        lines = set()
        for _ in range(SAMPLES):
            place = self._machine.vcpus[0].place()
            if place is None or place.waits:
                return True
            lines.add(place.address >> LINE_SHIFT)
            time.sleep(SAMPLE_GAP_SECONDS)
        new = not lines <= self._lines
        self._lines |= lines
        return new

    def _tell(self, seconds: float) -> None:
        from vmm.guest.pagetables import Paging
        from vmm.guest.symbolat import symbol_at

        machine = self._machine
        place = machine.vcpus[0].place()
        where = "somewhere"
        if place is not None:
            paging = Paging.of(place.sregs) if place.sregs else None
            name = symbol_at(self._config.kernel_path, place.address, machine.memory, paging)
            where = f"at {place.address:#x}" + (f" ({name})" if name else "")
            where = ("halted with interrupts off " if place.halted else "busy ") + where
        log.warning(
            f"the guest makes no progress: for {seconds:.0f} s no output, no disk request, no new "
            f"exit, its boot vCPU {where}\n" + "\n".join(machine.snapshots())
        )

    def _tell_hidden(self) -> None:
        """Say so when all that the guest said went where nobody looks."""
        said = [c.port.guest_bytes - n for c, n in zip(self._consoles, self._said, strict=True)]
        shown = [n for c, n in zip(self._consoles, said, strict=True) if c.kind != "null"]
        if shown and not any(shown) and any(said):
            log.warning(
                f"the guest has written {sum(said)} bytes to a console that is switched off and "
                "nothing to the one that is on: set VLLMD_HYPERVISOR_CONSOLE (hvc0) or "
                "VLLMD_HYPERVISOR_SERIAL (ttyS0), or console= in VLLMD_HYPERVISOR_CMDLINE"
            )
