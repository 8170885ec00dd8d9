"""Debian 12 as the guest, with systemd, on its own disk with a read-only config disk."""

from __future__ import annotations

import pytest

from tests.lab.guests.debian import DebianGuest
from tests.lab.guests.kernels import Kernel

SCENARIO = "tests.lab.scenarios"
BIG_MIB = 5 * 1024
SMALL_MIB = 32
MATRIX = [(v, m, c) for v in (1, 2, 4) for m in (512, BIG_MIB) for c in ("hvc0", "ttyS0")]


@pytest.fixture(scope="module")
def debian() -> DebianGuest:
    return DebianGuest()


@pytest.mark.full
@pytest.mark.parametrize(("vcpus", "memory_mib", "console"), MATRIX)
def test_reaches_multi_user(lab, debian, vcpus, memory_mib, console):
    lab.call(
        f"{SCENARIO}.debian:boots", kernel=str(debian.kernel), initramfs=str(debian.initramfs),
        vcpus=vcpus, memory_mib=memory_mib, console=console,
    )  # fmt: skip


def test_boots_and_stop_shuts_systemd_down(lab, debian):
    told = lab.call(
        f"{SCENARIO}.debian:stopped_by_another_process", kernel=str(debian.kernel),
        initramfs=str(debian.initramfs), vcpus=1, memory_mib=512,
    )  # fmt: skip
    print(told)


@pytest.mark.full
def test_data_survives_a_reboot_of_a_small_guest(lab, job):
    lab.call(f"{SCENARIO}.disks:small_data_survives", mib=SMALL_MIB, **job)


@pytest.mark.full
@pytest.mark.parametrize("name", ["one_place_fails", "all_writes_fail"])
def test_a_disk_that_fails_below(lab, job, name):
    modules = str(Kernel("linux-image-amd64").root)
    lab.call(f"{SCENARIO}.mapped:{name}", modules=modules, **job)


@pytest.mark.full
@pytest.mark.parametrize("mib", [32, 128, 1024])
def test_data_survives_a_reboot(lab, debian, mib):
    lab.call(
        f"{SCENARIO}.disks:data_survives", timeout=880, kernel=str(debian.kernel),
        initramfs=str(debian.initramfs), mib=mib,
    )  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("mib", [8, 32])
def test_fio_verifies(lab, debian, mib):
    lab.call(
        f"{SCENARIO}.disks:fio_verifies", timeout=880, kernel=str(debian.kernel),
        initramfs=str(debian.initramfs), mib=mib,
    )  # fmt: skip
