"""Who writes this page? The instructions that do, and how often.

    python examples/who_writes_this_page.py ADDRESS [KERNEL [INITRAMFS]]

ADDRESS is a guest address (0x200000) or a kernel symbol (jiffies_64). The page becomes read-only
for the guest: each write comes to us, is carried out, and the guest goes on. Reads cost nothing.
"""

from __future__ import annotations

import sys
from collections import Counter

from guests import place, settings

import vmm

WRITES = 1000
SECONDS = 120
PAGE = 4096


def writers(guest: vmm.Guest, address: int, limit: int = WRITES) -> Counter[str]:
    """Let it run until there were so many writes; by the place behind the instruction."""
    found: Counter[str] = Counter()

    def wrote(cpu):
        found[place(guest, cpu.address)] += 1
        return vmm.STOP if found.total() >= limit else None

    watch = guest.watch(address - address % PAGE, PAGE, action=wrote)
    print(guest.run(seconds=SECONDS))
    watch.remove()
    return found


def main(where: str, *files: str) -> int:
    """Watch from the kernel's start on."""
    with vmm.Guest(**settings(files)) as guest:
        if where[0].isdigit():
            address = int(where, 0)
        else:
            guest.run(until="start_kernel", seconds=SECONDS)
            address = guest.symbols[where]
        for name, count in writers(guest, address).most_common(20):
            print(f"{count:8}  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
