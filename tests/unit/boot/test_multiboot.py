"""ELF kernels with a Multiboot header: recognised, refused by name, told what the spec says."""

from __future__ import annotations

import os
import struct

import pytest

from tests.support.elf_builder import LOAD_GPA, build_elf, xen_note
from tests.support.multiboot_elf import MAGIC, header, multiboot_elf
from vmm import layout
from vmm._native.memory.guestmem import GuestMemory
from vmm.boot import kernel, plancache
from vmm.boot.image import MULTIBOOT, PVH
from vmm.errors import GuestError
from vmm.x86 import regs

CODE = b"\xf4" * 16


def plan_of(tmp_path, data, cache=None):
    path = tmp_path / "kernel"
    path.write_bytes(data)
    fd, plan = kernel.open_plan(str(path), cache)
    os.close(fd)
    return plan


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("flags", [0, 1, 2, 3, 0x10003, 0xFFFF0000])
def test_a_header_makes_it_a_multiboot_kernel(tmp_path, bits, flags):
    plan = plan_of(tmp_path, multiboot_elf(CODE, header(flags), bits))
    assert (plan.kind, plan.entry) == (MULTIBOOT, LOAD_GPA)
    assert plancache.decode(plancache.encode(plan)) == plan


def test_the_cache_keeps_its_kind(tmp_path):
    cache = str(tmp_path / "cache")
    assert plan_of(tmp_path, multiboot_elf(CODE), cache).kind == MULTIBOOT
    fd, plan = kernel.open_plan(str(tmp_path / "kernel"), cache)
    os.close(fd)
    assert plan.kind == MULTIBOOT


def test_a_pvh_note_counts_more(tmp_path):
    code = header() + CODE
    elf = build_elf(code, entry=LOAD_GPA + 12, note=xen_note(LOAD_GPA + 12))
    assert plan_of(tmp_path, elf).kind == PVH


@pytest.mark.parametrize(
    "head",
    [
        header(checksum=1),
        b"\0\0" + header(),
        struct.pack("<I", MAGIC),
        struct.pack("<II", MAGIC, 3),
        struct.pack("<I", MAGIC) * 3,
    ],
)
def test_what_is_no_header_is_none(tmp_path, head):
    with pytest.raises(GuestError, match="without a PVH entry.*or a Multiboot header"):
        plan_of(tmp_path, multiboot_elf(CODE, head))


def test_one_behind_another_that_is_none_counts(tmp_path):
    head = struct.pack("<II", MAGIC, MAGIC) + header()
    assert plan_of(tmp_path, multiboot_elf(CODE, head)).kind == MULTIBOOT


@pytest.mark.parametrize(("place", "found"), [(8192 - 12, True), (8192 - 8, False), (9000, False)])
def test_it_lies_in_the_first_8_kib(tmp_path, place, found):
    code = bytearray(8192)
    code[place - 0x1000 : place - 0x1000 + 12] = header()
    elf = build_elf(bytes(code), bits=32, note=b"")
    if found:
        assert plan_of(tmp_path, elf).kind == MULTIBOOT
    else:
        with pytest.raises(GuestError, match="Multiboot header"):
            plan_of(tmp_path, elf)


@pytest.mark.parametrize(
    ("flags", "words"), [(7, "requires a video mode"), (0x13, "requires 0x10, which no")]
)
def test_what_it_requires_must_be_here(tmp_path, flags, words):
    with pytest.raises(GuestError, match=words):
        plan_of(tmp_path, multiboot_elf(CODE, header(flags)))


@pytest.mark.parametrize("size", [16 << 20, 5 << 30])
def test_the_information(tmp_path, size):
    path = tmp_path / "kernel"
    path.write_bytes(multiboot_elf(CODE))
    module = tmp_path / "module"
    module.write_bytes(b"module" * 1000)
    memory = GuestMemory(layout.ram_regions(size))
    fd, plan = kernel.open_plan(str(path), None)
    try:
        kernel.load_guest(plan, fd, str(path), memory, str(module), "a=1 b")
    finally:
        os.close(fd)
    state = regs.multiboot_regs(plan.entry)
    assert (state["rip"], state["rax"]) == (LOAD_GPA, 0x2BADB002)
    info = memory.read(state["rbx"], 88)
    flags, lower, upper, _, cmdline, count, mods = struct.unpack_from("<7I", info)
    assert flags == 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9
    assert (lower, upper) == (640, (min(size, 3 << 30) >> 10) - 1024)
    assert memory.read(cmdline, 6) == b"a=1 b\0"
    start, end, text, _ = struct.unpack("<4I", memory.read(mods, 16))
    assert (count, start % 4096, text) == (1, 0, cmdline)
    assert memory.read(start, end - start) == b"module" * 1000
    length, place = struct.unpack_from("<2I", info, 44)
    found = [struct.unpack("<IQQI", memory.read(place + at, 24)) for at in range(0, length, 24)]
    assert [(gpa, size, kind == 1) for _, gpa, size, kind in found] == layout.memory_map(
        memory.regions
    )
    assert {entry[0] for entry in found} == {20}
    (name,) = struct.unpack_from("<I", info, 64)
    assert memory.read(name, 17) == b"vllmd-hypervisor\0"
    memory.close()
