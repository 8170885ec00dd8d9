"""`make demo`: a real VM on a default guest, on this host or, where it cannot, in the lab.

With ``firmware`` as its argument the guest is a whole Debian disk that boots itself and obeys a
cloud-init seed, as in production.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.lab.guests.cache import cached
from tests.lab.guests.debian import DebianGuest
from tests.lab.guests.default_guest import DefaultGuest
from tests.lab.guests.firmware import CLOUDHV, find_firmware, find_hypervisor_fw
from tests.lab.guests.images import make_fat
from tests.lab.guests.packages import PackageError, run
from tests.lab.rig.lab import ROOT, LabError
from tests.lab.rig.progress import say, step
from tests.lab.rig.steady import SteadyLab
from vmm.check.probe import can_run_kernels

LAB_MEMORY = "3G"
COMMAND = Path(sys.executable).with_name("vllmd-hypervisor")


LAB_DISK = "/dev/vda"
SEED_VERSION = "2"
USER_DATA = b"""#cloud-config
hostname: demo
locale: false
ssh_genkeytypes: []
write_files:
  - path: /etc/greeting
    content: written by cloud-init, as the seed on the config disk says
"""
GREETING = b"""
cloud-init status --wait >/dev/null
echo
echo "Hello from the guest: Debian $(cat /etc/debian_version), Linux $(uname -r)"
echo "  EFI:       $([ -d /sys/firmware/efi ] && echo yes || echo no)"
echo "  CPUs:      $(nproc)"
echo "  memory:    $(free -m | awk '/^Mem:/ {print $2}') MiB"
lsblk -l -n -o NAME,SIZE,RO,LABEL | sed 's/^/  disk:      /'
echo "  host name: $(hostname)"
echo "  greeting:  $(cat /etc/greeting)"
systemctl poweroff
"""


def settings(guest: DefaultGuest, system: Path) -> dict[str, str]:
    return prefixed(
        {
            "KERNEL_FILEPATH": guest.kernel.image,
            "INITRAMFS_FILEPATH": guest.initramfs,
            "SYSTEM_IMAGE_FILEPATH": system,
            "CONFIG_IMAGE_FILEPATH": guest.config,
            "CPU_COUNT": 2,
            "MEMORY_CONFIG": "size=512M,shared=on",
            "CMDLINE": "console=hvc0 panic=-1",
        }
    )


def firmware_settings(firmware: Path, system: Path | str) -> dict[str, str]:
    def make(path: Path) -> None:
        files = {"meta-data": b"instance-id: demo\n", "user-data": USER_DATA, "run": GREETING}
        make_fat(path, files)

    return prefixed(
        {
            "KERNEL_FILEPATH": firmware,
            "SYSTEM_IMAGE_FILEPATH": system,
            "CONFIG_IMAGE_FILEPATH": cached(f"demo-seed-{SEED_VERSION}.img", make),
            "CPU_COUNT": 2,
            "MEMORY_CONFIG": "size=1G,shared=on",
            "SERIAL": "tty",
            "CONSOLE": "null",
        }
    )


def prefixed(values: dict[str, object]) -> dict[str, str]:
    return {f"VLLMD_HYPERVISOR_{name}": str(value) for name, value in values.items()}


def show(values: dict[str, str]) -> None:
    for name, value in values.items():
        say(f"    {name}={value!r}" if " " in value else f"    {name}={value}")
    say(f"==> {COMMAND} start")


def run_here(values: dict[str, str]) -> int:
    say("==> starting the guest with")
    show(values)
    return subprocess.run(
        [str(COMMAND), "start"], env={**os.environ, **values}, check=False
    ).returncode


def run_in_lab(values: dict[str, str], drives: list[Path]) -> int:
    # The lab sees this machine's files read-only; a write goes to its memory.
    with step("installing what the lab needs, where it is missing"):
        run([str(ROOT / "packaging/debian-packages.sh"), "lab"])
    say("==> starting the lab")
    lab = SteadyLab(memory=LAB_MEMORY, drives=drives)
    try:
        say("==> starting the guest in the lab with")
        show(values)
        return lab.run([str(COMMAND), "start"], env=values, echo=True).status
    finally:
        lab.close()


def demo(able: bool) -> int:
    guest = DefaultGuest()
    values = settings(guest, guest.system)
    return run_here(values) if able else run_in_lab(values, [])


def firmware_demo(able: bool) -> int:
    firmware = find_hypervisor_fw() or find_firmware(CLOUDHV)
    assert firmware is not None
    debian = DebianGuest()
    if not able:
        return run_in_lab(firmware_settings(firmware, LAB_DISK), [debian.disk])

    def copy(path: Path) -> None:
        with step("copying the disk, for the guest to write to"):
            run(["cp", "--sparse=always", str(debian.disk), str(path)])

    return run_here(firmware_settings(firmware, cached(f"demo-{debian.name}.img", copy)))


def main() -> int:
    able, reason = can_run_kernels()
    if not able:
        say(f"==> this host cannot run an unmodified kernel ({reason}): using the lab")
    try:
        status = firmware_demo(able) if sys.argv[1:] == ["firmware"] else demo(able)
    except (LabError, PackageError) as error:
        say(f"demo: {error}")
        return 1
    say(f"==> the guest has ended; exit code {status}")
    return status


if __name__ == "__main__":
    sys.exit(main())
