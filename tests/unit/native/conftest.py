"""What tests of the disks' workers share."""

from __future__ import annotations

import os

import pytest

from tests.unit.native.test_block_worker import SECTORS


@pytest.fixture
def image(tmp_path):
    """Of random bytes."""
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SECTORS * 512))
    return path
