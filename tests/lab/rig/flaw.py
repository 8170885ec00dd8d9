"""Inside the lab: notices when the emulator, not the VMM, has lost a guest.

QEMU's emulation now and then hands KVM a guest with wrong registers or flags (seen with QEMU 7.2
and 10.0, with every VMM; most of it went away with CMPXCHG16B, see lab.PROCESSOR). Then KVM's
emulator faults without end (hundreds of thousands of injected page faults a minute, where a sound
guest has hundreds), or the guest triple-faults where it never does elsewhere, or a guest of one
processor waits for a spin lock: the flags of the compare-and-exchange that took the lock were
wrong; or an interrupt came at the first instruction of a system call, where there are none. Only
these four are told apart and tried again, at most twice, and each time is told in the test's
report; everything else fails the test.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

STATUS = 75  # EX_TEMPFAIL of sysexits(3)
DEBUG = Path("/sys/kernel/debug")
FAULTS = DEBUG / "kvm/pf_guest"
FAULTS_PER_SECOND = 1000
# Interrupts are off and the stack is still the user's there: a sound processor delivers nothing.
ENTRY_FAULT = "RIP: 0010:entry_SYSCALL_64+0x0/"
# What the report of a guest without progress shows where Linux waits for a lock's holder
# (native_queued_spin_lock_slowpath): pause; mov (%rbx),%eax; test %al,%al; jne. Which register
# has the lock's address is the compiler's choice. Or for the writer of a sequence counter
# (read_seqcount_begin()), whom nothing may interrupt: mov seq(%rip),%ebx; test $1,%bl; jne.
LOCK_WAIT = re.compile(
    r"code at rip: (f3 90 )?(8b 0[0-367] 84 c0 75 f8|8b 1d( \w\w){4} f6 c3 01 75 f[13])"
)
TRIPLE_FAULT = "the guest triple-faulted"
TOLD = "lab: the emulator lost a guest"
# How often a guest that is silent is asked where it stands, and how many answers have to agree.
LOOK_SECONDS = 4.0
STRIKES = 3


class LabFlaw(SystemExit):
    """The emulator lost the guest; ends the job with the status that means "try again"."""

    def __init__(self, how: str) -> None:
        print(f"{TOLD} ({how})")
        super().__init__(STATUS)


def reason_in(output: str) -> str:
    """How it was found out, by what a job printed that ended with LabFlaw; "" when it did not."""
    found = re.search(rf"^{TOLD} \((.*)\)$", output, re.MULTILINE)
    return f"the emulator lost a guest: {found[1]}" if found else ""


def lost_for_good(text: str, may_triple_fault: bool = False) -> str | None:
    """Why a guest that has ended is one that the emulator lost, by what its VMM printed."""
    if TRIPLE_FAULT in text and not may_triple_fault:
        return TRIPLE_FAULT
    if ENTRY_FAULT in text:
        return "interrupted where interrupts are off"
    return None


def waits_for_itself(reports: list[str] | str) -> str | None:
    """Why a guest of one processor is lost: by the reports of its vCPUs, or a log with one."""
    one = reports if isinstance(reports, str) else "".join(reports[:1])
    single = isinstance(reports, str) or len(reports) == 1
    return "its only processor waits for a lock" if single and LOCK_WAIT.search(one) else None


class StillWatch:
    """check() raises LabFlaw when a silent guest of one processor waits for a lock; call it often.

    ``said`` is what the guest said by now, ``ask`` where its vCPUs are: Vcpu.snapshot() of each.
    The VMM itself looks only while a guest boots.
    """

    def __init__(self, said: Callable[[], str], ask: Callable[[], list[str]]) -> None:
        self._said = said
        self._ask = ask
        self._seen = len(said())
        self._time = time.monotonic()
        self._strikes = 0

    def check(self) -> None:
        if time.monotonic() - self._time < LOOK_SECONDS:
            return
        self._time = time.monotonic()
        before, self._seen = self._seen, len(self._said())
        reason = waits_for_itself(self._ask()) if self._seen == before else None
        self._strikes = self._strikes + 1 if reason else 0
        if reason and self._strikes >= STRIKES:
            raise LabFlaw(f"{reason}, long after its boot")


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
