"""Debian's gdb and Linux, on a KVM whose hardware breakpoints and watchpoints hit."""

from __future__ import annotations

import pytest


@pytest.mark.full
def test_gdb_in_a_linux_kernel(lab, job):
    lab.call("tests.lab.scenarios.gdb:linux_under_gdb", **job)
