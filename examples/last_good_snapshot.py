"""What happened just before the crash? Back to the last good snapshot, and there again, watched.

    python examples/last_good_snapshot.py [KERNEL [INITRAMFS]]

Twice a second a snapshot; the newest twenty are kept. When the guest crashes (or calls panic()) it
is brought back to the last one and runs again with every exit recorded.
"""

from __future__ import annotations

import contextlib
import sys
from collections import deque

from guests import place, settings

import vmm

SLICE = 0.5
KEPT = 20
LAST = 10
GOOD_ENDS = ("shutdown", "stopped")


def run_in_slices(guest: vmm.Guest, each: float) -> tuple[vmm.Stop, deque[vmm.Snapshot]]:
    """Let it run to a stop; the newest snapshots of the way there."""
    kept: deque[vmm.Snapshot] = deque(maxlen=KEPT)
    panic = None
    while True:
        kept.append(guest.snapshot())
        stop = guest.run(seconds=each)
        if stop.kind != "timeout":
            return stop, kept
        if panic is None:
            # As soon as there are symbols.
            with contextlib.suppress(vmm.VmmError, KeyError):
                panic = guest.breakpoint("panic")


def exits(guest: vmm.Guest) -> list[str]:
    """The last exits of the trace, by name and place."""
    return [
        f"{guest.trace.names.name(int(one['reason']), int(one['address']), bool(one['is_write']))}"
        f" at {place(guest, int(one['rip']))}"
        for one in guest.trace.numpy()[-LAST:]
    ]


def main(*files: str, each: float = SLICE) -> int:
    """Run, go back, run again."""
    with vmm.Guest(**settings(files)) as guest:
        stop, kept = run_in_slices(guest, each)
        print(stop)
        if stop.outcome is not None and stop.outcome.kind in GOOD_ENDS:
            return 0
        guest.restore(kept[-1])
        print(f"back to {kept[-1]}, cpu 0 at {place(guest, guest.cpus[0].address)}")
        with guest.trace.start(rip=True):
            again = guest.run(seconds=4 * each)
        print(f"again: {again}; before that {len(guest.trace)} exits, the last:")
        print("\n".join(exits(guest)))
        print("\n".join([str(frame) for frame in guest.cpus[again.cpu].backtrace()]))
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
