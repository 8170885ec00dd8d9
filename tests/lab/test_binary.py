"""The static executable on a host that has nothing else."""

from __future__ import annotations

import hashlib

import pytest

from tests.lab.guests.debian import DebianGuest
from tests.support.binary import BINARY

SCENARIO = "tests.lab.scenarios.bare"


@pytest.fixture(scope="module")
def binary() -> str:
    if not BINARY.exists():
        pytest.fail(f"{BINARY} is not built: make binary")
    return str(BINARY)


def test_bad_settings(lab, binary):
    lab.call(f"{SCENARIO}:refuses_bad_settings", binary=binary)


@pytest.mark.full
def test_an_nvme(lab, binary, job, nvme):
    md5 = hashlib.md5(nvme.read_bytes()).hexdigest()
    lab.call(f"{SCENARIO}:passes_the_nvme", binary=binary, md5=md5, **job)


@pytest.mark.full
def test_debian(lab, binary):
    debian = DebianGuest()
    lab.call(
        f"{SCENARIO}:boots_debian", binary=binary, kernel=str(debian.kernel),
        initramfs=str(debian.initramfs),
    )  # fmt: skip
