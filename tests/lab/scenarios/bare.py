"""A host root with nothing but busybox, the static executable and a kernel: no Python, no library.

Its /dev, /proc and /sys are the lab's, so that images in /dev/shm and the lab's devices are there
by the same paths.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.lab.guests.debian import SYSTEM_DISK
from tests.lab.guests.guest_run import Guest, expect
from tests.lab.scenarios.debian import READY, facts, guest_of
from tests.lab.scenarios.lifecycle import job_guest
from tests.lab.scenarios.passthrough import NVME, NVME_JOB, bind, find
from tests.lab.scenarios.passthrough import facts as job_facts
from tests.support.speed import patience

BARE = Path("/dev/shm/bare")
BORROWED = ("dev", "proc", "sys")


def make_root(binary: str, *files: str) -> list[str]:
    """Make the root anew with these files; their paths inside it."""
    if not BARE.exists():
        for name in (*BORROWED, "bin", "run", "root", "boot"):
            (BARE / name).mkdir(parents=True)
        for name in BORROWED:
            subprocess.run(["mount", "--rbind", f"/{name}", BARE / name], check=True)
        shutil.copy(shutil.which("busybox") or "/bin/busybox", BARE / "bin/busybox")
    shutil.copy(binary, BARE / "bin/vllmd-hypervisor")
    for path in files:
        shutil.copy(path, BARE / "boot")
    own = sorted(
        str(path.relative_to(BARE))
        for name in os.listdir(BARE)
        if name not in BORROWED
        for path in (BARE / name).rglob("*")
        if (path.is_file() and name in ("bin", "root")) or path.suffix == ".so"
    )
    expect(own == ["bin/busybox", "bin/vllmd-hypervisor"], str(own))
    python = subprocess.run(
        ["chroot", BARE, "/bin/busybox", "find", "/bin", "/boot", "/root", "-name", "*python*"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    expect(python.stdout == "", python.stdout)
    return [f"/boot/{Path(path).name}" for path in files]


def inside(guest: Guest) -> Guest:
    """The guest with its VMM run in the bare root."""
    guest.command = ["chroot", str(BARE), "/bin/vllmd-hypervisor"]
    return guest


def boots_debian(binary: str, kernel: str, initramfs: str) -> None:
    """`start`, `status` and `stop` of a whole Debian."""
    kernel, initramfs = make_root(binary, kernel, initramfs)
    with inside(
        guest_of(
            kernel, initramfs, READY, "hvc0", CPU_COUNT=1, MEMORY_CONFIG="size=512M",
            STOP_TIMEOUT_SECONDS=patience(90),
        )
    ) as guest:  # fmt: skip
        guest.start().until("guest: ready")
        state = guest.status()
        expect(state["state"] == "running" and state["pid"] == guest.process.pid, str(state))
        expect(state["disks"][0]["path"] == SYSTEM_DISK, str(state["disks"]))
        code, told = guest.verb("stop", timeout=120)
        expect(code == 0 and "powered itself off" in told, f"{code} {told}\n{guest.text}")
        expect(guest.wait(10) == 0, guest.text)
        code, told = guest.verb("status")
        expect(code == 3 and "stopped" in told, f"{code} {told}")
        expect(not facts(guest.text, "failed"), guest.text)


def refuses_bad_settings(binary: str) -> None:
    """Every problem at once, exit code 2; --version and --help work there as well."""
    make_root(binary)
    guest = inside(Guest(CPU_COUNT="none", MEMORY_CONFIG="size=12Q", BOGUS=1))
    for arguments in (["start"], ["start", "--dry-run"]):
        code, text = guest.verb(*arguments)
        expect(code == 2, f"{code}\n{text}")
        for word in ("KERNEL_FILEPATH is not set", "CPU_COUNT=none", "size=12Q", "BOGUS"):
            expect(word in text, f"{word} is not told:\n{text}")
    code, text = guest.verb("--version")
    expect(code == 0 and "Python 3.11" in text, text)
    code, text = guest.verb("--help")
    expect(code == 0, text)
    if "  check " in text:
        code, text = guest.verb("check")
        expect(code == 2 and "KERNEL_FILEPATH" in text, f"{code}\n{text}")


def passes_the_nvme(binary: str, kernel: str, initramfs: str, md5: str) -> None:
    """The NVMe's whole content is right in the guest, and what that writes is there."""
    kernel, initramfs = make_root(binary, kernel, initramfs)
    group = bind(find(NVME))
    guest = job_guest(
        kernel, initramfs, NVME_JOB, DEVICE_FILEPATH_LIST=f"/dev/vfio/{group}"
    )  # fmt: skip
    with inside(guest):
        code = guest.run(timeout=200)
        seen = job_facts(guest.text)
    expect(code == 0 and seen.get("all") == md5, f"{code} {md5}\n{guest.text}")
    expect(seen.get("wrote") == seen.get("back") and seen.get("wrote"), guest.text)
