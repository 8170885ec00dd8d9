"""The two firmwares that boot a disk: hypervisor-fw where it is found, CLOUDHV.fd from Debian."""

from __future__ import annotations

import os
from pathlib import Path

from tests.lab.guests.packages import unpacked

HYPERVISOR_FW = "hypervisor-fw"
CLOUDHV = "CLOUDHV.fd"
NAMES = (HYPERVISOR_FW, CLOUDHV)
ROOT = Path(__file__).resolve().parents[3]
REMEDY = (
    "set VLLMD_TEST_HYPERVISOR_FW to a hypervisor-fw of "
    "github.com/cloud-hypervisor/rust-hypervisor-firmware"
)


def find_hypervisor_fw() -> Path | None:
    """By VLLMD_TEST_HYPERVISOR_FW, else in a folder beside the project."""
    given = os.environ.get("VLLMD_TEST_HYPERVISOR_FW")
    path = Path(given) if given else ROOT.parent / "shared/firmware/hypervisor-fw"
    return path if path.exists() else None


def find_firmware(name: str) -> Path | None:
    """The file, fetched when it is Debian's; None when it is not to be had."""
    if name == HYPERVISOR_FW:
        return find_hypervisor_fw()
    return unpacked("cloudhv-efi-x86-64", "sid") / "usr/share/cloudhv-efi-x86-64/CLOUDHV.fd"
