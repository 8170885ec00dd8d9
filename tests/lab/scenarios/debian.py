"""A whole Debian as the guest: what it sees of its machine, and its way through a life."""

from __future__ import annotations

import os
import re
import struct
import time

from tests.lab.guests.debian import JOB_LABEL, SYSTEM_DISK
from tests.lab.guests.guest_run import Guest, expect
from tests.lab.guests.images import make_fat
from tests.support.speed import patience

# What systemd may take to shut the guest down, of the lab's slow time.
# Less than systemd waits for a service that does not end (90): an emulated shutdown takes about 10.
STOP_SECONDS = 60.0
MIB = 1 << 20
# Everything a test wants to know of a guest, in lines that begin with "guest:".
INSPECT = """
echo "guest: cpus $(grep -c ^processor /proc/cpuinfo)"
echo "guest: siblings $(awk '/^siblings/ {print $3; exit}' /proc/cpuinfo)"
echo "guest: cores $(awk '/^cpu cores/ {print $4; exit}' /proc/cpuinfo)"
echo "guest: memory $(free -m | awk '/^Mem:/ {print $2}')"
echo "guest: high $(awk '/System RAM/ && length($1) > 17 {print $1}' /proc/iomem)"
lsblk -b -d -n -o NAME,SIZE,RO | sed 's/^/guest: disk /'
echo "guest: rng $(cat /sys/class/misc/hw_random/rng_available)"
echo "guest: clock $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
echo "guest: dmesg begins"
dmesg --level emerg,alert,crit,err,warn
echo "guest: dmesg ends"
systemctl --failed --no-legend --plain | sed 's/^/guest: failed /'
"""
POWER_OFF = "systemctl poweroff\n"
BAD = re.compile(
    r"BUG|WARNING|ACPI (Error|Exception|BIOS Error|Warning)|I/O error|"
    r"(virtio|vd[a-z]|hvc\d|ttyS|8250|pci|rtc).*([Ff]ail|[Ee]rror|[Ii]nvalid|timeout|supported)",
)
# The emulated processor lets XSETBV past KVM; every VMM's guest prints this in the lab.
LAB_OWN = re.compile(r"arch/x86/kernel/fpu/xstate\.c|XSAVE consistency")


def guest_of(kernel: str, initramfs: str, script: str, console: str, **settings: object) -> Guest:
    """A Debian guest on the lab's first disk whose config disk holds ``script``."""
    ends = {"CONSOLE": "tty", "SERIAL": "null"}
    if console == "ttyS0":
        ends = {"CONSOLE": "null", "SERIAL": "tty"}
    guest = Guest(
        KERNEL_FILEPATH=kernel, INITRAMFS_FILEPATH=initramfs, SYSTEM_IMAGE_FILEPATH=SYSTEM_DISK,
        CMDLINE=f"console={console} root=LABEL=root ro quiet panic=-1", **ends,
    )  # fmt: skip
    config = guest.folder / "config.img"
    make_fat(config, {"run": script.encode()}, label=JOB_LABEL)
    guest.env["VLLMD_HYPERVISOR_CONFIG_IMAGE_FILEPATH"] = str(config)
    for name, value in settings.items():
        guest.env[f"VLLMD_HYPERVISOR_{name}"] = str(value)
    return guest


def facts(text: str, name: str) -> list[str]:
    """The lines ``guest: NAME …`` without their beginning, which a login prompt may share."""
    return re.findall(rf"guest: {name} ?(.*)$", text, re.MULTILINE)


def boots(kernel: str, initramfs: str, vcpus: int, memory_mib: int, console: str) -> None:
    """Reaches multi-user, sees what was configured, complains about nothing, powers off."""
    with guest_of(
        kernel, initramfs, INSPECT + POWER_OFF, console,
        CPU_COUNT=vcpus, MEMORY_CONFIG=f"size={memory_mib}M,shared=on",
    ) as guest:  # fmt: skip
        code = guest.run(timeout=600)
        text = guest.text
    expect(code == 0, f"exit code {code}\n{text}")
    check_machine(text, vcpus, memory_mib)


def check_machine(text: str, vcpus: int, memory_mib: int) -> None:
    """What INSPECT printed is what was configured, and the kernel complains about nothing."""
    expect("guest: multi-user reached" in text, text)
    expect(facts(text, "cpus") == [str(vcpus)], text)
    expect(facts(text, "cores") == [str(vcpus)], text)
    seen = int(facts(text, "memory")[0])
    expect(memory_mib * 0.85 - 64 < seen <= memory_mib, text)
    expect(bool(facts(text, "high")[0]) == (memory_mib > 3072), text)
    disks = dict(line.split(None, 1) for line in facts(text, "disk"))
    expect(disks.get("vda", "").split()[1:] == ["0"], text)
    expect(disks.get("vdb", "").split() == [str(MIB), "1"], text)
    expect("virtio_rng.0" in facts(text, "rng")[0], text)
    expect(not facts(text, "failed"), text)
    complaints = [
        line
        for line in text.partition("dmesg begins")[2].partition("guest: dmesg ends")[0].split("\n")
        if BAD.search(line) and not LAB_OWN.search(line)
    ]
    expect(not complaints, "\n".join([*complaints, text]))


READY = 'echo "guest: ready"; sleep 1000\n'
# ext4's superblock (Documentation/filesystems/ext4/super.rst): its place, fields, flags.
SUPERBLOCK, MAGIC, STATE, INCOMPATIBLE, LAST_ORPHAN = 1024, 0x38, 0x3A, 0x60, 0xE8
EXT4_MAGIC, VALID_FS, NEEDS_RECOVERY = 0xEF53, 1, 4


def is_clean(disk: str) -> bool:
    """Whether the file system was unmounted, so that the next mount has nothing to put right."""
    with open(disk, "rb", buffering=0) as file:
        block = os.pread(file.fileno(), 1024, SUPERBLOCK)
    magic, state = struct.unpack_from("<HH", block, MAGIC)
    (flags,), (orphan,) = (
        struct.unpack_from("<I", block, offset) for offset in (INCOMPATIBLE, LAST_ORPHAN)
    )
    expect(magic == EXT4_MAGIC, f"{disk} has no ext4: {magic:#x}")
    return bool(state == VALID_FS and not flags & NEEDS_RECOVERY and not orphan)


def stopped_by_another_process(kernel: str, initramfs: str, vcpus: int, memory_mib: int) -> None:
    """`stop`: systemd shuts the guest down, its file system is clean, both exit with 0."""
    with guest_of(
        kernel, initramfs, INSPECT + READY, "hvc0", CPU_COUNT=vcpus,
        MEMORY_CONFIG=f"size={memory_mib}M", STOP_TIMEOUT_SECONDS=patience(90),
    ) as guest:  # fmt: skip
        check_machine(guest.start().until("guest: ready"), vcpus, memory_mib)
        expect(not is_clean(SYSTEM_DISK), "it is not mounted for writing")
        started = time.monotonic()
        code, told = guest.verb("stop", timeout=120)
        seconds = time.monotonic() - started
        expect(code == 0, f"{code} {told}\n{guest.text}")
        print(f"stopped in {seconds:.1f} s")
        expect(seconds < patience(STOP_SECONDS), f"the guest took {seconds:.1f} s\n{guest.text}")
        expect("powered itself off" in told, told)
        expect(guest.wait(10) == 0, guest.text)
        state = guest.status()
        expect(state["state"] == "stopped" and state["last_exit"]["code"] == 0, str(state))
    expect(is_clean(SYSTEM_DISK), "the guest's file system was not unmounted")
