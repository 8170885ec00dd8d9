"""`check` on a host with KVM, IOMMU and an NVMe: as root, and as a plain user, with its cures."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

import pytest

from tests.lab.job_guest import JobGuest
from tests.lab.packages import unpacked
from tests.lab.steady import SteadyLab

SCENARIO = "tests.lab.scenarios.check"
NVME_BYTES = 16 << 20
FIRST_BYTES = 4 << 20
CONTENT = random.Random(2).randbytes(NVME_BYTES)


@pytest.fixture(scope="module")
def nvme_lab(tmp_path_factory) -> Iterator[SteadyLab]:
    """A lab with an NVMe that has no driver."""
    path = tmp_path_factory.mktemp("nvme") / "nvme.img"
    path.write_bytes(CONTENT)
    drive = f"file={path},if=none,id=nvme,format=raw,snapshot=on"
    running = SteadyLab(
        memory="3G", extra=["-drive", drive, "-device", "nvme,drive=nvme,serial=lab"]
    )
    yield running
    running.close()


@pytest.fixture(scope="module")
def job() -> dict[str, str]:
    guest = JobGuest()
    return {"kernel": str(guest.image), "initramfs": str(guest.initramfs)}


def test_without_settings(nvme_lab):
    nvme_lab.call(f"{SCENARIO}:without_settings")


def test_as_root(nvme_lab, job):
    nvme_lab.call(f"{SCENARIO}:as_root", **job)


def test_as_a_plain_user(nvme_lab, job):
    md5 = hashlib.md5(CONTENT[:FIRST_BYTES]).hexdigest()
    nvme_lab.call(f"{SCENARIO}:as_a_plain_user", md5=md5, **job)


def test_a_udev_rule(nvme_lab):
    nvme_lab.call(f"{SCENARIO}:a_udev_rule_gives_groups", udev=str(unpacked("udev")))
