"""The tiny guests again, on the lab's kvm-amd: another KVM than this machine's."""

from __future__ import annotations

import sys

import pytest

LONGER = ("test_exits", "test_legacy_devices", "test_pci")


@pytest.mark.parametrize(
    "module", ["test_msix", *[pytest.param(name, marks=pytest.mark.full) for name in LONGER]]
)
def test_tiny_guests_on_the_lab_s_kvm(lab, module):
    result = lab.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/kvm/{module}.py"],
        env={"VLLMD_TEST_KVM": "1"},
    )
    assert result.status == 0, result.output
