"""The static executable on a host that has nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from tests.lab.guests.debian import DebianGuest
from tests.lab.rig import devices
from tests.lab.rig.devices import random_image
from tests.lab.rig.steady import SteadyLab
from tests.support.binary import BINARY

SCENARIO = "tests.lab.scenarios.bare"
NVME_BYTES = 16 << 20


@pytest.fixture(scope="module")
def binary() -> str:
    if not BINARY.exists():
        pytest.fail(f"{BINARY} is not built: make binary")
    return str(BINARY)


@pytest.fixture(scope="module")
def nvme(tmp_path_factory):
    return random_image(tmp_path_factory.mktemp("nvme") / "nvme.img", NVME_BYTES, seed=2)


@pytest.fixture(scope="module")
def bare_lab(nvme) -> Iterator[SteadyLab]:
    running = SteadyLab(
        memory="4G", drives=[DebianGuest().image], extra=devices.nvme(nvme)
    )  # fmt: skip
    yield running
    running.close()


def test_bad_settings(bare_lab, binary):
    bare_lab.call(f"{SCENARIO}:refuses_bad_settings", binary=binary)


def test_an_nvme(bare_lab, binary, job, nvme):
    md5 = hashlib.md5(nvme.read_bytes()).hexdigest()
    bare_lab.call(f"{SCENARIO}:passes_the_nvme", binary=binary, md5=md5, **job)


def test_debian(bare_lab, binary):
    debian = DebianGuest()
    bare_lab.call(
        f"{SCENARIO}:boots_debian", binary=binary, kernel=str(debian.kernel),
        initramfs=str(debian.initramfs),
    )  # fmt: skip
