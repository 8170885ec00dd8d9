"""`check` on a host with KVM, IOMMU and an NVMe: as root, and as a plain user, with its cures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from tests.lab.guests.packages import unpacked
from tests.lab.rig import devices
from tests.lab.rig.devices import random_image
from tests.lab.rig.steady import SteadyLab

SCENARIO = "tests.lab.scenarios.check"
NVME_BYTES = 16 << 20
FIRST_BYTES = 4 << 20


@pytest.fixture(scope="module")
def nvme(tmp_path_factory):
    return random_image(tmp_path_factory.mktemp("nvme") / "nvme.img", NVME_BYTES, seed=2)


@pytest.fixture(scope="module")
def nvme_lab(nvme) -> Iterator[SteadyLab]:
    """A lab with an NVMe that has no driver."""
    running = SteadyLab(memory="3G", extra=devices.nvme(nvme))
    yield running
    running.close()


def test_without_settings(nvme_lab):
    nvme_lab.call(f"{SCENARIO}:without_settings")


def test_as_root(nvme_lab, job):
    nvme_lab.call(f"{SCENARIO}:as_root", **job)


def test_as_a_plain_user(nvme_lab, job, nvme):
    md5 = hashlib.md5(nvme.read_bytes()[:FIRST_BYTES]).hexdigest()
    nvme_lab.call(f"{SCENARIO}:as_a_plain_user", md5=md5, **job)


def test_a_udev_rule(nvme_lab):
    nvme_lab.call(f"{SCENARIO}:a_udev_rule_gives_groups", udev=str(unpacked("udev")))
