"""For all unit tests."""

from __future__ import annotations

import subprocess

import pytest


@pytest.fixture
def child():
    """A process that does nothing."""
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()
