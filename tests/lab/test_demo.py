"""The default guest, end to end, as `make demo` runs it."""

from __future__ import annotations

from tests.lab.demo import settings
from tests.support.binary import command


def test_default_guest_greets_and_powers_off(lab, default_guest):
    result = lab.run([command(), "start"], env=settings(default_guest, default_guest.system))
    assert result.status == 0, result.output
    assert "Linux version" in result.output
    assert "Hello from the guest" in result.output
    assert "CPUs:   2" in result.output
    assert "vdb, 1 MiB, read-only" in result.output
    assert "config disk read: all is well" in result.output
    assert "the guest powered itself off" in result.output
