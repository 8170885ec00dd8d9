"""Guest RAM on a real kernel: shared memory in huge pages by default, and what refuses them."""

from __future__ import annotations

import os
from pathlib import Path

from tests.lab.guests.guest_run import Guest, expect
from tests.lab.rig.reach import open_to_all
from tests.lab.scenarios.check import apply, checked, run
from tests.lab.scenarios.lifecycle import COUNT, job_guest
from vmm._native.memory.guestmem import GuestMemory
from vmm._native.memory.ramimage import RamTracker
from vmm.check.resources import SHMEM_ENABLED

MIB = 1 << 20
PAGE = 4096
USER, UID = "smallpages", 1300
REBOOT = COUNT + '[ $n -gt 1 ] && { echo "guest: ready"; sleep 1000; }\nreboot -f; sleep 100\n'


def mapped_huge(pid: int | str = "self") -> int:
    """Shared memory of a process that is mapped in huge pages, in bytes."""
    lines = Path(f"/proc/{pid}/smaps").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("ShmemPmdMapped:"))


def tmpfs_mounts(pid: int | str) -> list[str]:
    """Where a process sees one mounted."""
    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    return sorted(line for line in lines if " - tmpfs " in line)


def a_guest_has_huge_pages(kernel: str, initramfs: str) -> None:
    """By default, after a reboot as well; nothing is left of how they were had."""
    before = tmpfs_mounts("self")
    with job_guest(kernel, initramfs, REBOOT) as guest:
        guest.start().until("guest: ready")
        facts = guest.status()
        memory, pid = facts["memory"], facts["pid"]
        print(f"memory {memory}, mapped {mapped_huge(pid) >> 20} MiB, {facts['exits']}")
        expect(memory["backing"] == "tmpfs" and memory["huge"] is True, str(memory))
        expect(memory["huge_refused"] is None, str(memory))
        expect(mapped_huge(pid) > 16 * MIB, f"{mapped_huge(pid)} of {memory['rss']}")
        names = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
        expect(not [name for name in names if "fscontext" in name], str(names))
        expect(tmpfs_mounts(pid) == before, "a mount is left")


def a_snapshot_copies_only_what_was_written() -> None:
    """This kernel's pagemap does not say of a huge page that it is of a file."""
    memory = GuestMemory([(0, 32 * MIB)], shared=True)
    expect(memory.backing == "tmpfs", f"{memory.backing}: {memory.refused}")
    tracker = RamTracker(memory)
    memory.write(0, b"x" * (32 * MIB))
    expect(mapped_huge() >= 16 * MIB, str(mapped_huge()))
    first = tracker.capture()
    for gpa in range(0, 32 * MIB, PAGE):
        expect(memory.read(gpa, 1) == b"x", hex(gpa))
    expect(tracker.capture().count == 0, f"{tracker.written()}")
    memory.write(5 * MIB + PAGE, b"y" * (3 * PAGE))
    memory.write(8 * MIB, b"w" * (2 * MIB))
    found = tracker.written()
    expect(found == [(5 * MIB // PAGE + 1, 3), (8 * MIB // PAGE, 512)], str(found))
    second = tracker.capture()
    expect(tracker.restore(first) == 515, str(tracker.written()))
    expect(memory.read(8 * MIB, 2) + memory.read(5 * MIB + PAGE, 1) == b"xxx", "not restored")
    child = second.spawn()
    expect(child.read(8 * MIB, 1) + child.read(10 * MIB, 1) == b"wx", "not the snapshot's")
    child.close()
    tracker.close()
    memory.close()


def a_refusal_is_told_and_cured(kernel: str, initramfs: str) -> None:
    """Namespaces are not to be had here: small pages, said by `check`; its cure gives huge ones."""
    run(f"useradd --uid {UID} {USER}")
    open_to_all(kernel, initramfs)
    before = Path(SHMEM_ENABLED).read_text().partition("[")[2].partition("]")[0]
    guest = job_guest(kernel, initramfs, "")
    guest.env.pop("XDG_RUNTIME_DIR", None)
    guest.prefix = ["su", USER, "-s", "/bin/sh", "-c", 'exec "$0" "$@"', "--"]
    run(f"chown -R {USER}: {guest.folder}")
    try:
        found = pages(guest)
        expect(found["level"] == "warning", str(found))
        expect("clone: Operation not permitted" in found["found"], str(found))
        apply([found], os.environ["PATH"])
        found = pages(guest)
        expect(found["level"] == "ok" and "memfd" in found["found"], str(found))
    finally:
        Path(SHMEM_ENABLED).write_text(before)


def pages(guest: Guest) -> dict[str, object]:
    """What `check` says of them."""
    (found,) = [finding for finding in checked(guest)[1] if finding["name"] == "memory-pages"]
    return found
