"""`make demo`: a real VM on a default guest, on this host or, where it cannot, in the lab."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.lab.default_guest import DefaultGuest
from tests.lab.lab import ROOT, LabError
from tests.lab.packages import PackageError, run
from tests.lab.progress import say, step
from tests.lab.steady import SteadyLab
from vmm.probe import can_run_kernels

LAB_MEMORY = "3G"
COMMAND = Path(sys.executable).with_name("vllmd-hypervisor")


def settings(guest: DefaultGuest, system: Path) -> dict[str, str]:
    values = {
        "KERNEL_FILEPATH": guest.kernel.image,
        "INITRAMFS_FILEPATH": guest.initramfs,
        "SYSTEM_IMAGE_FILEPATH": system,
        "CONFIG_IMAGE_FILEPATH": guest.config,
        "CPU_COUNT": 2,
        "MEMORY_CONFIG": "size=512M,shared=on",
        "CMDLINE": "console=hvc0 panic=-1",
    }
    return {f"VLLMD_HYPERVISOR_{name}": str(value) for name, value in values.items()}


def show(values: dict[str, str]) -> None:
    for name, value in values.items():
        say(f"    {name}={value!r}" if " " in value else f"    {name}={value}")
    say(f"==> {COMMAND} start")


def run_here(guest: DefaultGuest) -> int:
    values = settings(guest, guest.system)
    say("==> starting the guest with")
    show(values)
    return subprocess.run(
        [str(COMMAND), "start"], env={**os.environ, **values}, check=False
    ).returncode


def run_in_lab(guest: DefaultGuest) -> int:
    # The lab sees this machine's files read-only; a write goes to its memory.
    with step("installing what the lab needs, where it is missing"):
        run([str(ROOT / "packaging/debian-packages.sh"), "lab"])
    say("==> starting the lab")
    lab = SteadyLab(memory=LAB_MEMORY)
    try:
        values = settings(guest, guest.system)
        say("==> starting the guest in the lab with")
        show(values)
        return lab.run([str(COMMAND), "start"], env=values, echo=True).status
    finally:
        lab.close()


def main() -> int:
    able, reason = can_run_kernels()
    if not able:
        say(f"==> this host cannot run an unmodified kernel ({reason}): using the lab")
    try:
        guest = DefaultGuest()
        status = run_here(guest) if able else run_in_lab(guest)
    except (LabError, PackageError) as error:
        say(f"demo: {error}")
        return 1
    say(f"==> the guest has ended; exit code {status}")
    return status


if __name__ == "__main__":
    sys.exit(main())
