"""A Linux guest in a script's hands: snapshot after boot, restore, five forks, a file."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.lab.guests.guest_run import WORK, expect
from tests.lab.guests.job_guest import write_job
from tests.support.speed import patience
from vmm.debug.guest import Guest

MIB = 1 << 20
# A shell that does what it is told on the console, line by line, and keeps its variables.
SHELL = """
stty -echo
n=0
echo "guest: ready"
while read -r line; do eval "$line"; done
"""
COUNT = 'n=$((n + 1)); echo $n >/tmp/count; echo "guest: answer $n $(cat /tmp/count)"'
DISK = (
    'dd if=/dev/vda bs=512 count=1 2>/dev/null | head -c 5; printf "disk$n" | '
    'dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null; echo "guest: answer 0 $n"'
)
RANDOM = 'echo "guest: random $(head -c 16 /dev/urandom | od -An -tx1 | tr -d " ")"'
CLOCK = 'echo "guest: clock $(date +%s)"'
RESEEDED = 'echo "guest: reseeded $(dmesg | grep -c "crng reseeded due to virtual machine fork")"'
# The share of the boot that a fork may take.
FORK_AIM = 0.05
LOADER = """
import sys
from tests.lab.scenarios.snapshot import COUNT, asked
from vmm.debug.guest import Guest
with Guest.load(sys.argv[1]) as guest:
    print(asked(guest, COUNT))
"""
ROOT = Path(__file__).resolve().parents[3]


def asked(guest: Guest, command: str) -> str:
    """What the shell in the guest answers."""
    guest.console.write(command + "\n")
    match = guest.console.expect(r"guest: (?:answer|random|clock|reseeded) ([^\r\n]+)\r?\n", 120)
    return match[1].decode()


def booted(
    folder: Path, kernel: str, initramfs: str, cpus: int, memory: str
) -> tuple[Guest, float]:
    """A guest whose shell waits, and the seconds that took."""
    disk = folder / "disk.img"
    disk.write_bytes(b"image" + bytes(MIB - 5))
    started = time.monotonic()
    guest = Guest(
        kernel=kernel, initramfs=initramfs, memory=memory, cpu_count=cpus, system_image=disk,
        config_image=write_job(folder / "job.img", SHELL),
        cmdline="console=ttyS0 console=hvc0 quiet panic=-1",
    )  # fmt: skip
    guest.console.expect("guest: ready\r?\n", patience(300))
    return guest, time.monotonic() - started


def again_and_again(kernel: str, initramfs: str, cpus: int, memory: str) -> None:
    """The same answer after each restore; forks with memory, disks and random numbers of their
    own; a file that another process goes on with."""
    with tempfile.TemporaryDirectory(dir=WORK) as name:
        folder = Path(name)
        guest, boot = booted(folder, kernel, initramfs, cpus, memory)
        with guest:
            started = time.monotonic()
            base = guest.snapshot()
            took = time.monotonic() - started
            restores = [restored(guest, base) for _ in range(3)]
            forks = five_forks(base)
            elsewhere(base, folder)
            expect(asked(guest, COUNT) == "1 1", guest.console.text)
        expect((folder / "disk.img").read_bytes()[:5] == b"image", "the image was written")
    best = min(forks)
    told = (
        f"boot {boot:.2f} s, snapshot {took * 1000:.1f} ms, restore {min(restores) * 1000:.1f} ms, "
        f"fork {best * 1000:.1f} ms: {best / boot:.4f} of the boot"
    )
    print(told)
    expect(best <= FORK_AIM * boot, told)


def restored(guest: Guest, base: object) -> float:
    """Runs, restores; how long the restore took."""
    expect(asked(guest, COUNT) == "1 1", guest.console.text)
    expect(asked(guest, DISK) == "0 1", guest.console.text)
    expect("imageguest: answer" in guest.console.text, guest.console.text)
    expect(asked(guest, COUNT) == "2 2", guest.console.text)
    started = time.monotonic()
    guest.restore(base)
    return time.monotonic() - started


def five_forks(base: object) -> list[float]:
    """Each has its own of everything, was told, and knows the time; seconds to fork."""
    children = []
    seconds = []
    try:
        for _ in range(5):
            started = time.monotonic()
            children.append(base.fork())
            seconds.append(time.monotonic() - started)
        numbers = set()
        for child in children:
            numbers.add(asked(child, RANDOM))
            expect(asked(child, COUNT) == "1 1", child.console.text)
            expect(asked(child, DISK) == "0 1", child.console.text)
            expect("imageguest: answer" in child.console.text, child.console.text)
            expect(asked(child, RESEEDED) == "1", child.console.text)
            behind = time.time() - int(asked(child, CLOCK))
            expect(-2 < behind < patience(10), f"the clock is {behind} s behind")
        expect(len(numbers) == 5, f"random numbers {numbers}")
    finally:
        for child in children:
            child.close()
    return seconds


def elsewhere(base: object, folder: Path) -> None:
    """Saved; a new process loads it, and goes on."""
    path = folder / "saved"
    base.save(path)
    found = subprocess.run(
        [sys.executable, "-c", LOADER, path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    expect(found.stdout.strip() == "1 1", found.stdout + found.stderr)
