"""The benchmark program on a real KVM and a real kernel."""

from __future__ import annotations

import pytest


@pytest.mark.full
def test_boot_exits_and_timer(lab, job):
    lab.call("tests.lab.scenarios.bench:measure", **job)
