"""QEMU for the lab: a new one from Debian's backports, unpacked beside the host's own libraries.

Before 10.2 QEMU loses an interrupt now and then when two of its threads change a processor's
pending interrupts at once; a whole lab then stands still. The installed QEMU serves where the new
one cannot be had.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.lab.guests.cache import cached
from tests.lab.guests.packages import PackageError, run, unpacked_with_libraries
from tests.lab.rig.progress import say

BINARY = "qemu-system-x86_64"
PACKAGE = "qemu-system-x86"
SUITE = "trixie-backports"
BASE_SUITE = "trixie"
GUARD_SOURCE = Path(__file__).with_name("emulator.c")
GUARD_VERSION = "1"
# Since 10.2 the emulated IOMMU translates only when asked to.
TRANSLATES_WHEN_ASKED = "dma-remap"


def iommu(command: list[str]) -> str:
    """The argument of -device that makes the IOMMU of this QEMU translate."""
    shown = run([*command, "-device", "amd-iommu,help"])
    return "amd-iommu,dma-remap=on" if TRANSLATES_WHEN_ASKED in shown else "amd-iommu"


def emulator() -> list[str]:
    """The start of a command line for QEMU."""
    guard = ["env", f"LD_PRELOAD={_guard()}"]
    try:
        root = unpacked_with_libraries(PACKAGE, SUITE, BASE_SUITE)
    except (PackageError, OSError) as error:
        say(f"    the installed QEMU has to do: {error}")
        return [*guard, BINARY]
    libraries = root / "usr/lib/x86_64-linux-gnu"
    share = root / "usr/share"
    return [
        *guard, str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries),
        str(root / "usr/bin" / BINARY), "-L", str(share / "qemu"), "-L", str(share / "seabios"),
    ]  # fmt: skip


def _guard() -> Path:
    def make(path: Path) -> None:
        subprocess.run(
            ["gcc", "-O2", "-Wall", "-Werror", "-fPIC", "-shared", "-o", str(path),
             str(GUARD_SOURCE)],
            check=True,
        )  # fmt: skip

    return cached(f"lab-emulator-guard-{GUARD_VERSION}.so", make)
