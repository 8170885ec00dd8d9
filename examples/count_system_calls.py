"""Which system calls does a guest make? Counted by one breakpoint, from the outside.

    python examples/count_system_calls.py [KERNEL [INITRAMFS]]

The breakpoint is on do_syscall_64(regs, nr), Linux's way into the kernel on x86-64; names are read
from the kernel's own table in guest RAM. Nothing is loaded into the guest.
"""

from __future__ import annotations

import sys
from collections import Counter

from guests import settings

import vmm

SECONDS = 300
NUMBER_MAX = 1024


def count(guest: vmm.Guest, where: str | int = "do_syscall_64") -> Counter[int]:
    """Let it run to its end (or ``SECONDS``); calls by number, the second argument there."""
    calls: Counter[int] = Counter()

    @guest.breakpoint(where)
    def called(cpu):
        calls[cpu.regs.rsi & 0xFFFFFFFF] += 1

    print(guest.run(seconds=SECONDS))
    called.remove()
    return calls


def name_of(guest: vmm.Guest, number: int) -> str:
    """What the guest's own table of system calls has there."""
    table = guest.symbols.get("sys_call_table")
    if table is None or number >= NUMBER_MAX:
        return f"system call {number}"
    entry = guest.cpus[0].memory.read_u64(table + 8 * number)
    symbol = guest.symbols.at(entry) or "?"
    return symbol.removeprefix("__x64_").removeprefix("sys_")


def main(*files: str) -> int:
    """Count from the kernel's start to the guest's end."""
    with vmm.Guest(**settings(files)) as guest:
        print(guest.run(until="start_kernel", seconds=SECONDS))
        # While the kernel's own page tables are the vCPU's.
        names = {number: name_of(guest, number) for number in range(450)}
        for number, times in count(guest).most_common():
            print(f"{times:8}  {names.get(number, number)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
