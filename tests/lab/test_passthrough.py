"""Real PCI devices in guests, through the lab's IOMMU: an NVMe, the edu device, a BAR of 8 GiB."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from tests.lab.guests.debian import DebianGuest
from tests.lab.guests.job_guest import JobGuest
from tests.lab.guests.kernels import Kernel
from tests.lab.rig import devices
from tests.lab.rig.devices import random_image
from tests.lab.rig.steady import SteadyLab

SCENARIO = "tests.lab.scenarios"
NVME_BYTES = 64 << 20
FIRST_BYTES = 4 << 20
LARGE_BYTES = 8 << 30
SMALL_BYTES = 1 << 20
WRITES_BYTES = 384 << 20
FETCHED_BYTES = 1 << 20
FETCHED_NAME = "fetched"


@pytest.fixture(scope="module")
def nvme(tmp_path_factory):
    """The content of the lab's NVMe, random but always the same."""
    return random_image(tmp_path_factory.mktemp("nvme") / "nvme.img", NVME_BYTES)


@pytest.fixture(scope="module")
def writes(tmp_path_factory):
    """The host's file behind a second NVMe, which is written to for good."""
    path = tmp_path_factory.mktemp("nvme") / "writes.img"
    with open(path, "wb") as file:
        file.truncate(WRITES_BYTES)
    return path


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    """A file that the lab's network offers by TFTP."""
    return random_image(tmp_path_factory.mktemp("tftp") / FETCHED_NAME, FETCHED_BYTES, seed=2)


def shared_memory(name: str, size: int, place: str = "") -> list[str]:
    """A device whose BAR is ``size`` bytes of memory."""
    return [
        "-object", f"memory-backend-ram,id={name},size={size},share=on",
        "-device", f"ivshmem-plain,memdev={name}{place}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def vfio_lab(nvme, writes, fetched) -> Iterator[SteadyLab]:
    running = SteadyLab(
        memory="4G",
        drives=[DebianGuest().image],
        extra=[
            *devices.nvme(nvme), "-device", f"edu,dma_mask={(1 << 48) - 1}",
            *shared_memory("large", LARGE_BYTES), *shared_memory("small", SMALL_BYTES),
            "-drive", f"file={writes},if=none,id=writes,format=raw,cache=unsafe",
            "-device", "nvme,drive=writes,serial=writes",
            "-netdev", f"user,id=net,tftp={fetched.parent}", "-device", "e1000e,netdev=net",
            # Behind a conventional bridge nothing keeps devices apart: one group.
            "-device", "pcie-pci-bridge,id=bridge",
            *shared_memory("pair", SMALL_BYTES, ",bus=bridge,addr=1"),
            "-device", "e1000,bus=bridge,addr=2",
        ],
    )  # fmt: skip
    yield running
    running.close()


@pytest.mark.parametrize(
    "form",
    ["group", pytest.param("bdf", marks=pytest.mark.full),
     pytest.param("sysfs", marks=pytest.mark.full)],
)  # fmt: skip
def test_an_nvme(vfio_lab, job, nvme, form):
    md5 = hashlib.md5(nvme.read_bytes()).hexdigest()
    vfio_lab.call(f"{SCENARIO}.passthrough:nvme_works", md5=md5, form=form, **job)


def test_reboots_with_a_device(vfio_lab, job, nvme):
    md5 = hashlib.md5(nvme.read_bytes()[:FIRST_BYTES]).hexdigest()
    vfio_lab.call(f"{SCENARIO}.passthrough:reboots_with_a_device", md5=md5, **job)


@pytest.mark.parametrize(
    "name",
    ["killed_and_started_again", "two_devices_in_two_groups", "a_device_of_the_host_is_refused"],
)
def test_devices_come_and_go(vfio_lab, job, name):
    vfio_lab.call(f"{SCENARIO}.passthrough:{name}", **job)


@pytest.mark.parametrize("mib", [48, pytest.param(256, marks=pytest.mark.full)])
def test_writes_reach_the_host_s_file(vfio_lab, writes, mib):
    debian = DebianGuest()
    told = vfio_lab.call(
        f"{SCENARIO}.passthrough:writes_reach_the_host_s_file", timeout=880,
        kernel=str(debian.kernel), initramfs=str(debian.initramfs), mib=mib,
    )  # fmt: skip
    with open(writes, "rb") as file:
        assert hashlib.md5(file.read(mib << 20)).hexdigest() == told.split()[-1]


def test_a_network_card(vfio_lab, fetched):
    guest = JobGuest(package="linux-image-amd64", more=("e1000e", "af_packet"))
    vfio_lab.call(
        f"{SCENARIO}.passthrough:a_network_card", kernel=str(guest.image), file=FETCHED_NAME,
        initramfs=str(guest.initramfs), md5=hashlib.md5(fetched.read_bytes()).hexdigest(),
    )  # fmt: skip


def test_two_devices_in_one_group(vfio_lab, job):
    modules = str(Kernel("linux-image-amd64").root)
    vfio_lab.call(f"{SCENARIO}.passthrough:two_devices_in_one_group", modules=modules, **job)


def test_a_device_that_the_host_takes_back(vfio_lab, job):
    vfio_lab.call(f"{SCENARIO}.passthrough:a_device_that_the_host_takes_back", **job)


def test_peer_to_peer(vfio_lab):
    vfio_lab.call(f"{SCENARIO}.edu:peer_to_peer")


def test_a_large_bar(vfio_lab, job):
    vfio_lab.call(f"{SCENARIO}.passthrough:a_large_bar", size=LARGE_BYTES, **job)


def test_faults(vfio_lab, job, nvme):
    vfio_lab.call(f"{SCENARIO}.faults:faults_of_edu", form="bdf")
    md5 = hashlib.md5(nvme.read_bytes()[:FIRST_BYTES]).hexdigest()
    vfio_lab.call(f"{SCENARIO}.faults:fewer_vectors", md5=md5, form="bdf", **job)


def test_a_device_s_own_file_is_refused_without_iommufd(vfio_lab, job):
    vfio_lab.call(f"{SCENARIO}.iommufd:not_offered", **job)


def test_registers_and_dma(vfio_lab):
    vfio_lab.call(f"{SCENARIO}.edu:registers_and_dma")


@pytest.mark.parametrize("kind", ["intx", "msi"])
def test_a_thousand_interrupts(vfio_lab, kind):
    vfio_lab.call(f"{SCENARIO}.edu:interrupts", kind=kind)


def test_switches_between_the_line_and_messages(vfio_lab):
    vfio_lab.call(f"{SCENARIO}.edu:switches_between_kinds")
