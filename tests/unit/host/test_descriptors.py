"""The table of descriptors has its size before there are threads."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vmm.host.descriptors import needed
from vmm.settings.images import ImageSpec

IMAGES = [ImageSpec("system.img"), ImageSpec("config.img", queues=2)]
# Leaves nothing open; tells what its table has room for.
SCRIPT = """
import os, re, resource, sys
from vmm.host.descriptors import make_room
from vmm.settings.images import ImageSpec
limit = int(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
before = sorted(os.listdir("/proc/self/fd"))
make_room(int(sys.argv[1]), [ImageSpec("system.img")])
assert sorted(os.listdir("/proc/self/fd")) == before
print(re.search(r"FDSize:\\s*(\\d+)", open("/proc/self/status").read())[1])
"""


def room(vcpus: int, limit: int = 0) -> int:
    command = [sys.executable, "-c", SCRIPT, str(vcpus), str(limit)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_what_is_needed():
    assert needed(1, []) == 26
    assert needed(4, IMAGES) == 24 + 8 + (2 + 2 * 4) + (2 + 2 * 2)


@pytest.mark.parametrize("vcpus", [1, 64, 255])
def test_there_is_room_for_all_and_more(vcpus):
    assert room(vcpus) >= 2 * needed(vcpus, IMAGES[:1])


def test_a_limit_below_that_is_no_error():
    assert 128 <= room(255, 200) <= 256
    assert room(255, 32) == room(1, 32)
