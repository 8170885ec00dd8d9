"""Real PCI devices in guests, through the lab's IOMMU: an NVMe, the edu device, a BAR of 8 GiB."""

from __future__ import annotations

import hashlib

import pytest

from tests.lab.guests.debian import DebianGuest
from tests.lab.guests.job_guest import JobGuest
from tests.lab.guests.kernels import Kernel
from tests.lab.rig.devices import FETCHED_NAME, FIRST_BYTES, LARGE_BYTES

SCENARIO = "tests.lab.scenarios"
SMALL_MIB = 16


@pytest.mark.parametrize(
    "form",
    ["group", pytest.param("bdf", marks=pytest.mark.full),
     pytest.param("sysfs", marks=pytest.mark.full)],
)  # fmt: skip
def test_an_nvme(lab, job, nvme, form):
    md5 = hashlib.md5(nvme.read_bytes()).hexdigest()
    lab.call(f"{SCENARIO}.passthrough:nvme_works", md5=md5, form=form, **job)


@pytest.mark.parametrize("boots", [2, pytest.param(4, marks=pytest.mark.full)])
def test_reboots_with_a_device(lab, job, nvme, boots):
    md5 = hashlib.md5(nvme.read_bytes()[:FIRST_BYTES]).hexdigest()
    lab.call(f"{SCENARIO}.passthrough:reboots_with_a_device", md5=md5, boots=boots, **job)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("killed_and_started_again", marks=pytest.mark.full),
        "a_device_of_the_host_is_refused",
        pytest.param("two_devices_in_two_groups", marks=pytest.mark.full),
    ],
)
def test_devices_come_and_go(lab, job, name):
    lab.call(f"{SCENARIO}.passthrough:{name}", **job)


def test_writes_reach_the_host_s_file(lab, writes, job):
    told = lab.call(f"{SCENARIO}.passthrough:a_small_guest_writes", mib=SMALL_MIB, **job)
    with open(writes, "rb") as file:
        assert hashlib.md5(file.read(SMALL_MIB << 20)).hexdigest() == told.split()[-1]


@pytest.mark.full
@pytest.mark.parametrize("mib", [48, 256])
def test_a_debian_s_writes_reach_the_host_s_file(lab, writes, mib):
    debian = DebianGuest()
    told = lab.call(
        f"{SCENARIO}.passthrough:writes_reach_the_host_s_file", timeout=880,
        kernel=str(debian.kernel), initramfs=str(debian.initramfs), mib=mib,
    )  # fmt: skip
    with open(writes, "rb") as file:
        assert hashlib.md5(file.read(mib << 20)).hexdigest() == told.split()[-1]


def test_a_network_card(lab, fetched):
    guest = JobGuest(package="linux-image-amd64", more=("e1000e", "af_packet"))
    lab.call(
        f"{SCENARIO}.passthrough:a_network_card", kernel=str(guest.image), file=FETCHED_NAME,
        initramfs=str(guest.initramfs), md5=hashlib.md5(fetched.read_bytes()).hexdigest(),
    )  # fmt: skip


def test_two_devices_in_one_group(lab, job):
    modules = str(Kernel("linux-image-amd64").root)
    lab.call(f"{SCENARIO}.passthrough:two_devices_in_one_group", modules=modules, **job)


def test_a_device_that_the_host_takes_back(lab, job):
    lab.call(f"{SCENARIO}.passthrough:a_device_that_the_host_takes_back", **job)


def test_peer_to_peer(lab):
    lab.call(f"{SCENARIO}.edu:peer_to_peer")


@pytest.mark.full
def test_a_large_bar(lab, job):
    lab.call(f"{SCENARIO}.passthrough:a_large_bar", size=LARGE_BYTES, **job)


def test_faults(lab):
    lab.call(f"{SCENARIO}.faults:faults_of_edu", form="bdf")


@pytest.mark.full
def test_fewer_vectors(lab, job, nvme):
    md5 = hashlib.md5(nvme.read_bytes()[:FIRST_BYTES]).hexdigest()
    lab.call(f"{SCENARIO}.faults:fewer_vectors", md5=md5, form="bdf", **job)


def test_a_device_s_own_file_is_refused_without_iommufd(lab, job):
    lab.call(f"{SCENARIO}.iommufd:not_offered", **job)


def test_registers_and_dma(lab):
    lab.call(f"{SCENARIO}.edu:registers_and_dma")


@pytest.mark.parametrize("kind", ["intx", "msi"])
def test_a_thousand_interrupts(lab, kind):
    lab.call(f"{SCENARIO}.edu:interrupts", kind=kind)


def test_switches_between_the_line_and_messages(lab):
    lab.call(f"{SCENARIO}.edu:switches_between_kinds")


@pytest.mark.full
def test_the_line_beside_qemu(lab, job):
    print(lab.call(f"{SCENARIO}.line:beside_qemu", timeout=1200, rounds=3, **job))
