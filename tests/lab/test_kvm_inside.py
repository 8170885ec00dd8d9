"""The tiny guests again, on the lab's kvm-amd: another KVM than this machine's."""

from __future__ import annotations

import sys

import pytest


# Short of these, test_passthrough.py has tiny guests with the edu device.
@pytest.mark.full
@pytest.mark.parametrize("module", ["test_msix", "test_exits", "test_legacy_devices", "test_pci"])
def test_tiny_guests_on_the_lab_s_kvm(lab, module):
    result = lab.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/kvm/{module}.py"],
        env={"VLLMD_TEST_KVM": "1"},
    )
    assert result.status == 0, result.output
