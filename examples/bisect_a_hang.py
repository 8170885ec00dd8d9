"""When did it begin to hang, and where does it go round? By bisection over snapshots.

    python examples/bisect_a_hang.py [KERNEL [INITRAMFS]]

A snapshot twice a second, until the guest says nothing for a while. A moment is good when the guest
that is brought back to it still says something or ends; a bisection finds the first that is not.
"""

from __future__ import annotations

import sys
from collections import Counter

from guests import place, settings

import vmm

SLICE = 0.5
QUIET = 20
STEPS = 400


def said(guest: vmm.Guest) -> int:
    """Bytes that came on its consoles."""
    return len(guest.serial.bytes) + len(guest.console.bytes)


def record(guest: vmm.Guest, each: float, quiet: int) -> list[vmm.Snapshot]:
    """Snapshots up to a silence of ``quiet`` slices; none when the guest comes to an end."""
    found, silent = [], 0
    while silent < quiet:
        found.append(guest.snapshot())
        before = said(guest)
        if guest.run(seconds=each).kind == "ended":
            return []
        silent = 0 if said(guest) > before else silent + 1
    return found


def is_good(guest: vmm.Guest, moment: vmm.Snapshot, seconds: float) -> bool:
    """From there on it still gets somewhere."""
    guest.restore(moment)
    before = said(guest)
    return guest.run(seconds=seconds).kind == "ended" or said(guest) > before


def bisect(guest: vmm.Guest, moments: list[vmm.Snapshot], seconds: float) -> int:
    """The number of the first moment from which nothing comes any more; the first one is good."""
    good, bad = 0, len(moments) - 1
    while bad - good > 1:
        middle = (good + bad) // 2
        if is_good(guest, moments[middle], seconds):
            good = middle
        else:
            bad = middle
    return bad


def main(*files: str, each: float = SLICE, quiet: int = QUIET) -> int:
    """Record, bisect, and step through what it does there."""
    with vmm.Guest(**settings(files)) as guest:
        moments = record(guest, each, quiet)
        if not moments:
            print(f"it does not hang: {guest.outcome}")
            return 0
        first = bisect(guest, moments, each * quiet)
        print(f"it hangs from {first * each:g} s on; the end of what it said before:")
        print(guest.serial.text[-200:])
        is_good(guest, moments[first], each * quiet)
        for cpu in guest.cpus:
            rounds = Counter(guest.step(cpu=cpu.index).address for _ in range(STEPS))
            for address, times in rounds.most_common(5):
                print(f"cpu {cpu.index}: {times:4} of {STEPS} steps at {place(guest, address)}")
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
