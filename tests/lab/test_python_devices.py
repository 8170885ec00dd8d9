"""Linux's own drivers on devices that are Python, and hooks on the lab's KVM."""

from __future__ import annotations

import sys

import pytest

from tests.lab.guests.job_guest import JobGuest

SCENARIO = "tests.lab.scenarios.python_devices"


@pytest.fixture(scope="module")
def job() -> dict[str, str]:
    guest = JobGuest(more=("vmw_vmci",))
    return {"kernel": str(guest.image), "initramfs": str(guest.initramfs)}


def test_linux_binds_its_drivers(lab, job):
    print(lab.call(f"{SCENARIO}:linux_binds", timeout=600, **job))


@pytest.mark.full
def test_hooks_on_the_lab_s_kvm(lab):
    result = lab.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kvm/test_hooks.py"],
        env={"VLLMD_TEST_KVM": "1"},
    )
    assert result.status == 0, result.output
