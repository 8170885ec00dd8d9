"""Inside the lab: notices when the emulator, not the VMM, has lost a guest.

QEMU's emulation now and then hands KVM a guest with wrong registers or flags (seen with QEMU 7.2
and 10.0, with every VMM; most of it went away with CMPXCHG16B, see lab.PROCESSOR). Then KVM's
emulator faults without end (hundreds of thousands of injected page faults a minute, where a sound
guest has hundreds), or the guest triple-faults where it never does elsewhere, or a guest of one
processor waits for a spin lock: the flags of the compare-and-exchange that took the lock were
wrong; or an interrupt came at the first instruction of a system call, where there are none. Only
these four are told apart and tried again, at most twice; everything else fails the
test.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

STATUS = 75  # EX_TEMPFAIL of sysexits(3)
DEBUG = Path("/sys/kernel/debug")
FAULTS = DEBUG / "kvm/pf_guest"
FAULTS_PER_SECOND = 1000
# Interrupts are off and the stack is still the user's there: a sound processor delivers nothing.
ENTRY_FAULT = "RIP: 0010:entry_SYSCALL_64+0x0/"
# What the report of a guest without progress shows where Linux waits for a lock's holder
# (native_queued_spin_lock_slowpath): mov (%rbx),%eax; test %al,%al; jne.
LOCK_WAIT = "code at rip: 8b 03 84 c0 75 f8"


class LabFlaw(SystemExit):
    """The emulator lost the guest; ends the job with the status that means "try again"."""

    def __init__(self, how: str) -> None:
        print(f"lab: the emulator lost a guest ({how})")
        super().__init__(STATUS)


class FlawWatch:
    """check() raises LabFlaw when the rate of injected page faults says so; call it often."""

    def __init__(self) -> None:
        if not FAULTS.exists():
            subprocess.run(["mount", "-t", "debugfs", "debugfs", str(DEBUG)], check=False)
        self._time = time.monotonic()
        self._count = self._read()
        self._strikes = 0

    def _read(self) -> int:
        try:
            return int(FAULTS.read_text())
        except (OSError, ValueError):
            return 0

    def check(self) -> None:
        elapsed = time.monotonic() - self._time
        if elapsed < 2:
            return
        count = self._read()
        rate = (count - self._count) / elapsed
        self._time, self._count = time.monotonic(), count
        self._strikes = self._strikes + 1 if rate > FAULTS_PER_SECOND else 0
        if self._strikes >= 3:
            raise LabFlaw(f"{rate:.0f} page faults injected a second")


def run_watched(command: list[str]) -> int:
    """Run it to its end and return its exit code; LabFlaw when the emulator lost its guest."""
    watch = FlawWatch()
    process = subprocess.Popen(command)
    try:
        while (code := process.poll()) is None:
            watch.check()
            time.sleep(0.05)
    finally:
        process.kill()
    return code
