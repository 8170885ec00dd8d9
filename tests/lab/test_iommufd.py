"""Devices by their own files through iommufd, in a lab whose kernel has it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator

import pytest

from tests.abi.test_iommufd import compare
from tests.lab.guests.iommufd_kernel import COMPILER, IommufdKernel, headers
from tests.lab.rig import devices
from tests.lab.rig.devices import FIRST_BYTES
from tests.lab.rig.steady import SteadyLab

SCENARIO = "tests.lab.scenarios"
CDEV = "cdev"


@pytest.fixture(scope="module")
def iommufd_lab(nvme) -> Iterator[SteadyLab]:
    missing = [tool for tool in (COMPILER, "make", "strip") if shutil.which(tool) is None]
    assert not missing, f"apt-get install make binutils {COMPILER}"
    running = SteadyLab(
        memory="4G", kernel=IommufdKernel(), extra=[*devices.nvme(nvme), "-device", "edu"]
    )
    yield running
    running.close()


def test_our_header_is_this_kernel_s(tmp_path):
    folder = headers()
    # The kernel's own copy is not made ready for programs (scripts/headers_install.sh).
    compare(
        tmp_path,
        "#define __user",
        *[f'#include "{folder}/linux/{name}.h"' for name in ("vfio", "iommufd")],
    )


def test_an_nvme_by_its_file(iommufd_lab, job, nvme):
    md5 = hashlib.md5(nvme.read_bytes()).hexdigest()
    iommufd_lab.call(f"{SCENARIO}.passthrough:nvme_works", md5=md5, form=CDEV, **job)


@pytest.mark.full
def test_reboots(iommufd_lab, job, nvme):
    md5 = hashlib.md5(nvme.read_bytes()[:FIRST_BYTES]).hexdigest()
    iommufd_lab.call(
        f"{SCENARIO}.passthrough:reboots_with_a_device", md5=md5, boots=4, form=CDEV, **job
    )


@pytest.mark.full
def test_killed_and_started_again(iommufd_lab, job):
    iommufd_lab.call(f"{SCENARIO}.passthrough:killed_and_started_again", form=CDEV, **job)


@pytest.mark.parametrize(
    "name",
    ["by_its_file_alone", "a_group_and_a_file_are_refused",
     pytest.param("without_the_group_s_file", marks=pytest.mark.full),
     pytest.param("two_devices_by_one_file", marks=pytest.mark.full)],
)  # fmt: skip
def test_files(iommufd_lab, job, name):
    iommufd_lab.call(f"{SCENARIO}.iommufd:{name}", **job)


@pytest.mark.full
def test_faults(iommufd_lab):
    iommufd_lab.call(f"{SCENARIO}.faults:faults_of_edu", form=CDEV)


@pytest.mark.full
def test_the_group_as_before(iommufd_lab, job, nvme):
    md5 = hashlib.md5(nvme.read_bytes()[:FIRST_BYTES]).hexdigest()
    iommufd_lab.call(
        f"{SCENARIO}.passthrough:reboots_with_a_device", md5=md5, boots=4, form="group", **job
    )
