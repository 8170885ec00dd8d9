"""A disk that boots itself: firmware, boot loader, kernel, systemd; and cloud-init on top."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.lab.guests.debian import JOB_LABEL
from tests.lab.guests.guest_run import COMMAND, Guest, expect
from tests.lab.guests.images import fill_fat, make_fat
from tests.lab.scenarios.debian import INSPECT, POWER_OFF, check_machine, facts

MARKER = "lab.marker=yes"
SECONDS = 600
# The first boot reboots, the second one tells what it sees and powers off.
TWICE = f"""
echo "guest: cmdline $(cat /proc/cmdline)"
echo "guest: efi $([ -d /sys/firmware/efi ] && echo yes || echo no)"
mount -o remount,rw /
if [ ! -e /booted ]; then
  touch /booted
  sync
  systemctl reboot
  sleep 1000
fi
rm /booted
{INSPECT}{POWER_OFF}"""


def guest_of(firmware: str, disk: str, **more: object) -> Guest:
    """A guest whose kernel is a firmware; everything it says is on the serial port."""
    guest = Guest(
        KERNEL_FILEPATH=firmware, SYSTEM_IMAGE_FILEPATH=disk, SERIAL="tty", CONSOLE="null",
        **more,
    )  # fmt: skip
    guest.env["VLLMD_HYPERVISOR_CONFIG_IMAGE_FILEPATH"] = str(guest.folder / "config.img")
    return guest


def boots_itself(
    firmware: str, disk: str, vcpus: int, memory_mib: int, efi: bool, says: str
) -> None:
    """Multi-user twice, by a reboot of the guest's, then a power-off; ``says``: firmware's words.

    ``efi``: the operating system must find EFI run-time services. A firmware without them must
    append our command line to the boot entry's options.
    """
    with guest_of(
        firmware, disk, CPU_COUNT=vcpus, MEMORY_CONFIG=f"size={memory_mib}M,shared=on",
        CMDLINE=MARKER,
    ) as guest:  # fmt: skip
        make_fat(guest.folder / "config.img", {"run": TWICE.encode()}, label=JOB_LABEL)
        code = guest.run(timeout=SECONDS)
        text = guest.text
        state = guest.status()
    expect(code == 0, f"exit code {code}\n{text}")
    expect(says in text.partition("guest: multi-user reached")[0], text)
    expect(state["reboots"] == 1, str(state))
    expect(facts(text, "efi") == ["yes" if efi else "no"] * 2, text)
    cmdlines = facts(text, "cmdline")
    expect(len(cmdlines) == 2 and all("root=LABEL=root" in line for line in cmdlines), text)
    if not efi:
        expect(all(MARKER in line.split() for line in cmdlines), text)
    check_machine(text.rpartition("guest: multi-user reached")[1] + text, vcpus, memory_mib)


USER_DATA = """#cloud-config
hostname: {name}
users:
  - name: tenant
    uid: 4321
locale: false
ssh_genkeytypes: []
write_files:
  - path: /etc/written-by-cloud-init
    content: {name}
"""
CLOUD = f"""
cloud-init status --wait >/dev/null
echo "guest: instance $(cat /var/lib/cloud/data/instance-id)"
echo "guest: hostname $(hostname)"
echo "guest: user $(id -u tenant)"
echo "guest: written $(cat /etc/written-by-cloud-init)"
echo "guest: efi $([ -d /sys/firmware/efi ] && echo yes || echo no)"
{INSPECT}{POWER_OFF}"""


def make_seed(path: Path, name: str) -> None:
    """A NoCloud seed, made by our command, whose instance id, host name and file are ``name``.

    What the test asks for stands beside that.
    """
    files = {"user-data": USER_DATA.format(name=name), "meta-data": f"instance-id: {name}\n"}
    for source, text in files.items():
        path.with_name(source).write_text(text)
    words = [COMMAND, "seed", *[str(path.with_name(source)) for source in files], str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    expect(done.returncode == 0, done.stderr)
    fill_fat(str(path), {"run": CLOUD.encode()})


def cloud_init_obeys_its_seed(
    firmware: str, disk: str, names: list[str], vcpus: int, memory_mib: int, says: str
) -> None:
    """A boot by EFI applies the seed; another instance id makes cloud-init run again.

    As the disk is the same for all tests of a lab, names are given once. ``says``: as above.
    """
    with guest_of(
        firmware, disk, CPU_COUNT=vcpus, MEMORY_CONFIG=f"size={memory_mib}M,shared=on"
    ) as guest:
        for name in names:
            make_seed(Path(guest.env["VLLMD_HYPERVISOR_CONFIG_IMAGE_FILEPATH"]), name)
            guest.output.unlink(missing_ok=True)
            code = guest.run(timeout=SECONDS)
            text = guest.text
            expect(code == 0, f"exit code {code}\n{text}")
            expect(says in text.partition("guest: multi-user reached")[0], text)
            expect(facts(text, "efi") == ["yes"], text)
            expect(facts(text, "cpus") == [str(vcpus)], text)
            expect(bool(facts(text, "high")[0]) == (memory_mib > 3072), text)
            expect(facts(text, "instance") == [name], text)
            expect(facts(text, "hostname") == [name], text)
            expect(facts(text, "user") == ["4321"], text)
            expect(facts(text, "written") == [name], text)
