"""What did the guest change in between? The pages in which two snapshots differ.

    python examples/diff_two_snapshots.py SECONDS [KERNEL [INITRAMFS]]

One snapshot at once, the other after SECONDS; the pages that differ are shown as stretches, with
the first bytes that are others.
"""

from __future__ import annotations

import sys

import numpy as np
from guests import settings

import vmm

PAGE = 4096
SHOWN = 20


def stretches(pages: np.ndarray) -> list[tuple[int, int]]:
    """(gpa, number of pages) of neighbours."""
    if not len(pages):
        return []
    breaks = np.flatnonzero(np.diff(pages) != PAGE) + 1
    return [(int(run[0]), len(run)) for run in np.split(pages, breaks)]


def first_change(one: vmm.Snapshot, other: vmm.Snapshot, page: int) -> str:
    """The first bytes that differ in a page."""
    before, after = one.memory.read(page, PAGE), other.memory.read(page, PAGE)
    at = next(n for n in range(PAGE) if before[n] != after[n])
    return f"{page + at:#x}: {before[at : at + 8].hex(' ')} -> {after[at : at + 8].hex(' ')}"


def main(seconds: str, *files: str) -> int:
    """Two snapshots of one run."""
    with vmm.Guest(**settings(files)) as guest:
        one = guest.snapshot()
        stop = guest.run(seconds=float(seconds))
        if stop.kind == "ended":
            print(f"it ended before: {stop}; give fewer seconds")
            return 1
        other = guest.snapshot()
        pages = one.diff(other)
        print(f"{len(pages)} pages differ, {len(pages) * PAGE / guest.memory.size:.1%} of RAM")
        for gpa, count in sorted(stretches(pages), key=lambda run: -run[1])[:SHOWN]:
            print(f"{count:6} pages at {gpa:#12x}; {first_change(one, other, gpa)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
