"""drgn over a guest: a kernel's program whose RAM is the guest's own, and no descriptor left."""

from __future__ import annotations

import contextlib
import gc
import os
import struct
from types import SimpleNamespace

import drgn
import pytest

from tests.unit.guest.test_coredump import cpu
from vmm._native.memory.guestmem import GuestMemory
from vmm.debug.outside import Outside
from vmm.errors import GuestError

MIB = 1 << 20
HIGH = 1 << 32
NOTE_GPA = 0x3000
LINUX = b"""OSRELEASE=6.1.0-40-cloud-amd64
BUILD-ID=00112233445566778899aabbccddeeff00112233
PAGESIZE=4096
SYMBOL(init_uts_ns)=ffffffff82a1b2c0
SYMBOL(swapper_pg_dir)=ffffffff8280a000
SYMBOL(mem_section)=ffffffff82a1b2c8
LENGTH(mem_section)=2048
NUMBER(phys_base)=0
NUMBER(pgtable_l5_enabled)=0
NUMBER(KERNEL_IMAGE_SIZE)=1073741824
KERNELOFFSET=0
"""


class Words:
    """Registers of one kind, as a vCPU has them."""

    def __init__(self, values: dict) -> None:
        self.values = values

    def as_dict(self) -> dict:
        return self.values


class NoKernel:
    def get(self) -> None:
        return None


class Halted:
    """A vCPU without paging."""

    def __init__(self) -> None:
        self.memory = SimpleNamespace(paging=None)
        self.regs, self.sregs = Words(cpu(1)), Words({})


class Standing(Outside):
    """A guest that stands still, of RAM and registers alone."""

    def __init__(self, note: bytes) -> None:
        self.memory = GuestMemory.anonymous([(0, MIB), (HIGH, MIB)])
        head = struct.pack("<III", 11, len(note), 0) + b"VMCOREINFO\0\0"
        self.memory.write(NOTE_GPA, head + note)
        self.cpus = [Halted()]
        self._symbols = NoKernel()

    def _standing(self):
        return contextlib.nullcontext()


@pytest.fixture
def guest(request):
    standing = Standing(getattr(request, "param", LINUX))
    yield standing
    standing.memory.close()


def test_it_is_a_kernel_and_its_memory_the_guests_own(guest):
    program = guest.drgn()
    assert program.flags & drgn.ProgramFlags.IS_LINUX_KERNEL
    for gpa in (0x10, MIB - 8, HIGH + MIB - 8):
        guest.memory.write(gpa, b"written")
        assert program.read(gpa, 7, physical=True) == b"written"
    with pytest.raises(drgn.FaultError):
        program.read(MIB, 8, physical=True)


@pytest.mark.parametrize(
    "guest",
    [
        LINUX[: LINUX.index(b"SYMBOL")],
        LINUX.replace(b"PAGESIZE=4096", b"PAGESIZE=4097"),
        b"OSRELEASE=" + b"A" * 3000,
    ],
    indirect=True,
)
def test_a_note_that_the_guest_made_up_is_an_exception_at_most(guest):
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(GuestError, match=r"drgn does not take .*VMCOREINFO"):
        guest.drgn()
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("guest", [b"no release"], indirect=True)
def test_without_a_linux_it_says_so(guest):
    with pytest.raises(GuestError, match=r"no VMCOREINFO.*let it boot"):
        guest.drgn()
