"""A ring that the host refuses after one was to be had: told, and nothing of others is closed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# A filter cannot be taken back, so in a process of its own.
SCRIPT = """
import os, sys
from tests.support.seccomp import IO_URING_SETUP, answer
from vmm._native.disk import uring
from vmm._native.memory.guestmem import GuestMemory
from vmm._native.virtio.virtqueue import VirtQueue
if not uring.supported():
    sys.exit(77)
memory = GuestMemory([(0, 1 << 20)])
queue = VirtQueue(memory, 8, 0x1000, 0x2000, 0x3000)
answer(IO_URING_SETUP, int(sys.argv[1]))
try:
    uring.UringBlkWorker(queue, -1, 8, False, False, b"", -1, -1, -1)
except OSError as error:
    assert error.errno == int(sys.argv[1]), error
else:
    sys.exit("a ring was made")
os.fstat(0)
"""


@pytest.mark.parametrize("code", ["ENOMEM", "EPERM", "EINVAL"])
def test_no_descriptor_of_others_is_closed(code):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(getattr(errno, code))], cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 77:
        pytest.skip("no io_uring here")
    assert done.returncode == 0, done.stderr
