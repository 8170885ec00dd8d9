"""Which processes does the guest have? Read from its RAM, with no help of the guest.

    python examples/list_processes.py [KERNEL [INITRAMFS]]

Symbols are the kernel's own (kallsyms), offsets from its own description of its types (BTF): the
kernel file is all that is needed. The list is the guest's: a broken one comes to an end.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from guests import GREETING, settings

import vmm
from vmm.guest.btf import Btf

SECONDS = 300
TASKS_MAX = 1 << 15
COMM_BYTES = 16


def processes(guest: vmm.Guest) -> Iterator[tuple[int, int, str, bool]]:
    """(pid, its parent's, name, whether it is the kernel's own) of each process."""
    memory, symbols = guest.cpus[0].memory, guest.symbols
    btf = Btf.from_ram(memory.read, symbols)
    at = {
        name: btf.offset("task_struct", name)
        for name in ("tasks", "tgid", "comm", "mm", "real_parent")
    }
    init = symbols["init_task"]
    task = init
    for _ in range(TASKS_MAX):
        parent = memory.read_u64(task + at["real_parent"])
        yield (
            memory.read_u32(task + at["tgid"]),
            memory.read_u32(parent + at["tgid"]),
            memory.read_string(task + at["comm"], COMM_BYTES),
            not memory.read_u64(task + at["mm"]),
        )
        task = memory.read_u64(task + at["tasks"]) - at["tasks"]
        if task == init:
            return


def main(*files: str) -> int:
    """The list at the moment when the guest greets (or after a minute)."""
    with vmm.Guest(**settings(files)) as guest:
        guest.run(until="start_kernel", seconds=SECONDS)
        try:
            guest.serial.expect(GREETING, SECONDS)
        except TimeoutError as error:
            print(error)
        # To a place where the kernel's page tables are in use.
        guest.run(until="schedule", seconds=SECONDS)
        for pid, parent, name, own in processes(guest):
            print(f"{pid:6} {parent:6}  {f'[{name}]' if own else name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
