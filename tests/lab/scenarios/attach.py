"""A Linux guest that an instance runs, looked at by another process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import vmm
from tests.lab.guests.guest_run import WORK, Guest, expect
from vmm.guest.vmcoreinfo import BEGIN

POOL = Path("/proc/sys/vm/nr_hugepages")


def instance(kernel: str, initramfs: str, memory: str) -> Guest:
    """One whose guest tells of itself and sleeps."""
    guest = Guest(
        KERNEL_FILEPATH=kernel, INITRAMFS_FILEPATH=initramfs, CPU_COUNT=1, MEMORY_CONFIG=memory,
        SERIAL="tty", CMDLINE="console=ttyS0 quiet panic=-1", NAME="seen", ATTACH="on",
    )  # fmt: skip
    for name in ("SYSTEM", "CONFIG"):
        path = guest.folder / f"{name.lower()}.img"
        path.write_bytes(bytes(1 << 20))
        guest.env[f"VLLMD_HYPERVISOR_{name}_IMAGE_FILEPATH"] = str(path)
    return guest


@contextlib.contextmanager
def huge_pages(memory: str) -> Iterator[None]:
    """As many as such a guest needs, for as long as it is there."""
    if "hugepages=on" not in memory:
        yield
        return
    POOL.write_text("128")
    try:
        yield
    finally:
        POOL.write_text("0")


def told(text: str) -> dict[str, int]:
    """Symbols as the guest has told them: of each name its address."""
    rows = [
        line.partition("guest: symbol ")[2].split()
        for line in text.splitlines()
        if "guest: symbol " in line
    ]
    return {name: int(address, 16) for address, _, name in rows}


def sees_a_kernel(kernel: str, initramfs: str, memory: str) -> None:
    """Symbols, frames and strings of a kernel of which no file is known but its bzImage."""
    with huge_pages(memory), instance(kernel, initramfs, memory) as guest:
        text = guest.start().until("guest: ready")
        with vmm.attach("seen", environment=guest.env) as attached:
            print(attached, attached.symbols, flush=True)
            found = {name: attached.symbols[name] for name in told(text)}
            expect(len(found) > 5 and found == told(text), f"{found} {told(text)}")
            banner = attached.cpus[0].memory.read_string("linux_banner")
            expect(banner.startswith("Linux version"), banner)
            with attached.paused():
                frames = attached.cpus[0].backtrace()
                jiffies = attached.cpus[0].memory.read_u64("jiffies_64")
                expect(len(frames) > 1 and str(frames[-1]), f"{frames}")
                expect(jiffies == attached.cpus[0].memory.read_u64("jiffies_64"), "it runs")
            path = WORK / "seen.core"
            code, said = guest.verb("dump", "seen", str(path))
            print(said, flush=True)
            expect(code == 0, said)
            expect(BEGIN in path.read_bytes()[: 1 << 16], "no VMCOREINFO")
            path.unlink()
        expect(guest.status()["attached"]["holding"] == 0, guest.text)
        guest.verb("stop", "--now")
        expect(guest.wait() == 37, guest.text)
        expect("soft lockup" not in guest.text, guest.text)


def processes_by_drgn(kernel: str, initramfs: str, vmlinux: str) -> None:
    """drgn over the live guest and over its dump: both have the process that sleeps."""
    import drgn
    from drgn.helpers.linux.pid import for_each_task

    def names(program: drgn.Program) -> set[str]:
        program.load_debug_info([vmlinux])
        return {task.comm.string_().decode() for task in for_each_task(program)}

    with instance(kernel, initramfs, "size=256M,shared=on") as guest:
        guest.start().until("guest: ready")
        path = WORK / "seen.core"
        code, said = guest.verb("dump", "seen", str(path))
        expect(code == 0, said)
        dumped = drgn.Program()
        dumped.set_core_dump(str(path))
        with vmm.attach("seen", environment=guest.env) as attached, attached.paused():
            live = names(attached.drgn())
        path.unlink()
        expect(live == names(dumped) and "sleep" in live, f"{live}")
        guest.verb("stop", "--now")
        guest.wait()
