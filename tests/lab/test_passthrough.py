"""Real PCI devices in guests, through the lab's IOMMU: an NVMe, the edu device, a BAR of 8 GiB."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

import pytest

from tests.lab.job_guest import JobGuest
from tests.lab.steady import SteadyLab

SCENARIO = "tests.lab.scenarios"
NVME_BYTES = 64 << 20
FIRST_BYTES = 4 << 20
LARGE_BYTES = 8 << 30


@pytest.fixture(scope="module")
def nvme(tmp_path_factory):
    """The content of the lab's NVMe, random but always the same."""
    path = tmp_path_factory.mktemp("nvme") / "nvme.img"
    path.write_bytes(random.Random(1).randbytes(NVME_BYTES))
    return path


@pytest.fixture(scope="module")
def vfio_lab(nvme) -> Iterator[SteadyLab]:
    drive = f"file={nvme},if=none,id=nvme,format=raw,snapshot=on"
    running = SteadyLab(
        memory="4G",
        extra=[
            "-drive", drive, "-device", "nvme,drive=nvme,serial=lab", "-device", "edu",
            "-object", f"memory-backend-ram,id=large,size={LARGE_BYTES},share=on",
            "-device", "ivshmem-plain,memdev=large",
        ],
    )  # fmt: skip
    yield running
    running.close()


@pytest.fixture(scope="module")
def job() -> dict[str, str]:
    guest = JobGuest()
    return {"kernel": str(guest.image), "initramfs": str(guest.initramfs)}


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
