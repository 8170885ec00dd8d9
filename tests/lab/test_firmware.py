"""Whole disks that boot themselves, by both firmwares, with two boot loaders, with cloud-init."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.guests.debian import DISK, GRUB_DISK
from tests.lab.guests.firmware import CLOUDHV, HYPERVISOR_FW, NAMES, REMEDY, find_firmware

SCENARIO = "tests.lab.scenarios.firmware"
BIG_MIB = 5 * 1024
MATRIX = [(name, v, m) for name in NAMES for v in (1, 4) for m in (512, BIG_MIB)]
# By the other firmware boots the guest with a seed. The rest belongs to the longer matrix.
SHORT = [(HYPERVISOR_FW, 1, 512)]
# What each firmware prints before it leaves the machine to the boot entry.
WORDS = {HYPERVISOR_FW: "Jumping to kernel", CLOUDHV: "BdsDxe: starting Boot"}


def firmware(name: str) -> Path:
    path = find_firmware(name)
    if path is None:
        pytest.skip(f"no {name}: {REMEDY}")
    return path


@pytest.mark.parametrize(
    ("name", "vcpus", "memory_mib"),
    [
        pytest.param(
            *row, marks=() if row in SHORT else pytest.mark.full, id="-".join(map(str, row))
        )
        for row in MATRIX
    ],
)
def test_a_disk_boots_itself_and_reboots(lab, name, vcpus, memory_mib):
    lab.call(
        f"{SCENARIO}:boots_itself", timeout=880, firmware=str(firmware(name)), disk=DISK,
        vcpus=vcpus, memory_mib=memory_mib, efi=name == CLOUDHV, says=WORDS[name],
    )  # fmt: skip


@pytest.mark.full
def test_grub_boots(lab):
    lab.call(
        f"{SCENARIO}:boots_itself", timeout=880, firmware=str(firmware(CLOUDHV)), disk=GRUB_DISK,
        vcpus=1, memory_mib=512, efi=True, says=WORDS[CLOUDHV],
    )  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize(
    ("names", "vcpus"),
    [pytest.param(["first"], 1, id="once"), pytest.param(["second", "third"], 2, id="again")],
)
def test_cloud_init_obeys_its_seed(lab, names, vcpus):
    lab.call(
        f"{SCENARIO}:cloud_init_obeys_its_seed", timeout=880, firmware=str(firmware(CLOUDHV)),
        disk=DISK, names=names, vcpus=vcpus, memory_mib=BIG_MIB, says=WORDS[CLOUDHV],
    )  # fmt: skip
