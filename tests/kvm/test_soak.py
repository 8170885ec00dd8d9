"""Machine after machine in one process, as under a guest that reboots for weeks: nothing grows."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import pytest

from tests.support.guest_asm import Program
from tests.support.process import open_descriptors, thread_count
from tests.support.soak import soak
from tests.support.tiny_machine import TinyMachine

# The first machines fill caches and free lists.
WARM_UP = 50
GROWTH_MAX_BYTES = 128 << 10


class MallocInfo(ctypes.Structure):
    """struct mallinfo2, over all arenas (mallinfo(3))."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
            "fordblks", "keepcost",
        )
    ]  # fmt: skip


def allocated() -> int:
    """Bytes that malloc() has given out; what it keeps for later varies, and does not count."""
    ask = ctypes.CDLL(None).mallinfo2
    ask.restype = MallocInfo
    info = ask()
    return int(info.uordblks + info.hblkhd)


def footprint() -> tuple[int, int, int]:
    """Descriptors, mappings and threads of this process."""
    gc.collect()
    maps = len(Path("/proc/self/maps").read_text().splitlines())
    return len(open_descriptors()), maps, thread_count()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("machines", [100, pytest.param(3000, marks=pytest.mark.full)])
def test_machines_leave_nothing_behind(tmp_path, machines):
    program = Program().out_string(0x3F8, b"x" * 64).power_off()
    before, bytes_before = (0, 0, 0), 0
    for number in range(WARM_UP + machines):
        if number == WARM_UP:
            before, bytes_before = footprint(), allocated()
        with TinyMachine(tmp_path, program, CPU_COUNT=2) as tiny:
            assert tiny.run().kind == "shutdown"
    descriptors, mappings, threads = footprint()
    assert (descriptors, threads) == (before[0], before[2])
    # The C library keeps the stack of an ended thread or two, and an arena.
    assert mappings <= before[1] + 8
    assert allocated() - bytes_before <= GROWTH_MAX_BYTES


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_an_instance_that_reboots_writes_and_talks(tmp_path):
    """The short form of `make soak`: the guest's own verifications, and what the process holds."""
    run = soak(tmp_path, 330)
    assert run.heard.verified > 30
    assert not run.problems(), run.text()
