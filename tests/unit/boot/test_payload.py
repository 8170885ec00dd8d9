"""What a kernel says of itself and of its limits, and files that say too much."""

from __future__ import annotations

import os
import struct
import time

import pytest

from tests.support.elf_builder import LOAD_GPA, aligned_note, build_elf, other_note, xen_note
from tests.support.tiny_bzimage import build_bzimage
from vmm._native.memory.guestmem import GuestMemory
from vmm.boot import kernel
from vmm.boot.elf import NOTES_MAX
from vmm.errors import GuestError, setting_of

RAM = 64 << 20
HALT = b"\xf4" * 64


def plan_of(tmp_path, data):
    path = tmp_path / "kernel"
    path.write_bytes(data)
    fd, plan = kernel.open_plan(str(path), None)
    os.close(fd)
    return plan


def check(tmp_path, data, cmdline="", initramfs=None, ram=RAM):
    plan = plan_of(tmp_path, data)
    kernel.check_payload(plan, str(tmp_path / "kernel"), cmdline, initramfs, ram)
    return plan


def size_of(kernel_limit: int) -> dict[int, bytes]:
    return {0x238: struct.pack("<I", kernel_limit)}


@pytest.mark.parametrize(
    ("data", "limit"),
    [
        (build_bzimage(), 2047),
        (build_bzimage(changes=size_of(4095)), 4095),
        (build_bzimage(changes=size_of(100)), 100),
        (build_bzimage(changes=size_of(0xFFFFFFFF)), 0xFFFF),
        (build_bzimage(changes={0x206: struct.pack("<H", 0x205)}), 255),
        (build_elf(HALT), 2047),
    ],
)
def test_the_command_line_is_as_long_as_the_kernel_takes_it(tmp_path, data, limit):
    check(tmp_path, data, cmdline="x" * limit)
    with pytest.raises(GuestError) as told:
        check(tmp_path, data, cmdline="x" * (limit + 1))
    assert f"CMDLINE has {limit + 1} characters" in str(told.value)
    assert f"takes {limit} " in str(told.value)
    assert setting_of(str(told.value)) == "VLLMD_HYPERVISOR_CMDLINE"


def test_the_zero_page_keeps_what_the_kernel_says_of_its_command_line(tmp_path):
    path = tmp_path / "kernel"
    path.write_bytes(build_bzimage(changes=size_of(1234)))
    memory = GuestMemory([(0, RAM)])
    fd, plan = kernel.open_plan(str(path), None)
    kernel.load_guest(plan, fd, str(path), memory, None, "quiet")
    os.close(fd)
    assert memory.read(0x7238, 4) == struct.pack("<I", 1234)
    assert memory.read(0x7228, 4) == struct.pack("<I", 0x20000)
    memory.close()


@pytest.mark.parametrize("align", [4, 8])
@pytest.mark.parametrize("before", [b"", "one", "three"])
def test_notes_of_both_alignments(tmp_path, align, before):
    count = {"one": 1, "three": 3}.get(before, 0)
    notes = other_note(20, align) * count + aligned_note(LOAD_GPA, align)
    plan = plan_of(tmp_path, build_elf(HALT, notes_at_end=notes, note_align=align))
    assert plan.entry == LOAD_GPA


def test_notes_aligned_to_4_in_a_segment_that_says_8(tmp_path):
    notes = other_note(20, 4) + other_note(4, 4) + xen_note(LOAD_GPA)
    plan = plan_of(tmp_path, build_elf(HALT, notes_at_end=notes, note_align=8))
    assert plan.entry == LOAD_GPA


@pytest.mark.parametrize(
    "notes",
    [
        bytes(8 << 20),
        other_note(0) * (8 << 16),
        struct.pack("<III", 0xFFFFFFF0, 0xFFFFFFF0, 18) + bytes(4 << 20),
        other_note(0) * NOTES_MAX + xen_note(LOAD_GPA),
    ],
    ids=["zeroes", "small", "huge", "one too many"],
)
def test_megabytes_of_notes_take_no_time(tmp_path, notes):
    data = build_elf(HALT, notes_at_end=notes)
    began = time.process_time()
    with pytest.raises(GuestError, match="PVH entry"):
        plan_of(tmp_path, data)
    assert time.process_time() - began < 1


def test_an_entry_behind_a_note_of_megabytes_is_found(tmp_path):
    notes = other_note(8 << 20) + xen_note(LOAD_GPA)
    assert plan_of(tmp_path, build_elf(HALT, notes_at_end=notes)).entry == LOAD_GPA


def test_a_dynamic_segment_and_endless_sections_take_no_time(tmp_path):
    """A parser that follows them would read the file from end to end, again and again."""
    data = bytearray(build_elf(HALT, loads=((0x400000, 0x1000),)))
    dynamic = 64 + 2 * 56
    data[dynamic : dynamic + 4] = struct.pack("<I", 2)
    struct.pack_into("<Q", data, 40, 0x300)  # e_shoff; the number of sections is in the first
    struct.pack_into("<HHH", data, 58, 64, 0, 1)
    struct.pack_into("<Q", data, 0x300 + 32, 1 << 60)
    began = time.process_time()
    assert plan_of(tmp_path, bytes(data)).entry == LOAD_GPA
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("loads", "told"),
    [
        (((LOAD_GPA + 32, 0x1000),), "its segments overlap"),
        (((0x200000, 0x2000), (0x201000, 0x1000)), "its segments overlap"),
        (((0x200000, 1 << 46),), "a guest's addresses have 46 bits"),
        (((0x200000, (1 << 64) - 1),), "a guest's addresses have 46 bits"),
        (((0x8000, 0x1000),), "kernels go to"),
    ],
)
def test_segments_that_no_linker_makes(tmp_path, loads, told):
    with pytest.raises(GuestError, match=told):
        plan_of(tmp_path, build_elf(HALT, loads=loads))


def test_a_kernel_larger_than_ram_is_known_before_anything_is_built(tmp_path):
    data = build_elf(HALT, loads=((0x400000, RAM),))
    with pytest.raises(GuestError, match="needs RAM at.*MEMORY_CONFIG"):
        check(tmp_path, data)
    check(tmp_path, data, ram=2 * RAM)


@pytest.mark.parametrize(
    ("initrd_max", "size", "told"),
    [
        (0x7FFFFFFF, 1 << 20, None),
        (0x7FFFFFFF, RAM, "raise size in VLLMD_HYPERVISOR_MEMORY_CONFIG"),
        (0x000FFFFF, 4096, r"none above 0x100000 \(initrd_addr_max\)"),
        (0x0000FFFF, 4096, r"none above 0x10000 \(initrd_addr_max\)"),
        (0x001FFFFF, 4096, r"none above 0x200000 \(initrd_addr_max\)"),
        (0x02FFFFFF, 4096, None),
        (0x7FFFFFFF, 0, "the file is empty"),
    ],
)
def test_an_initramfs_has_its_place_or_is_refused(tmp_path, initrd_max, size, told):
    initramfs = tmp_path / "initramfs"
    with open(initramfs, "wb") as file:
        file.truncate(size)
    data = build_bzimage(changes={0x22C: struct.pack("<I", initrd_max)})
    if told is None:
        check(tmp_path, data, initramfs=str(initramfs))
        memory = GuestMemory([(0, RAM)])
        gpa, _ = kernel.load_initramfs(plan_of(tmp_path, data), memory, str(initramfs))
        assert gpa + size <= min(initrd_max + 1, RAM)
        memory.close()
        return
    with pytest.raises(GuestError, match=told) as caught:
        check(tmp_path, data, initramfs=str(initramfs))
    assert setting_of(str(caught.value)) == "VLLMD_HYPERVISOR_INITRAMFS_FILEPATH"


@pytest.mark.parametrize(
    "data",
    [b"root:x:0:0", b"", b"\x7fELF", build_elf(HALT, note=b""), build_elf(HALT)[:-4],
     build_bzimage()[:300] + bytes(0), build_bzimage(changes={0x211: b"\0"})],
)  # fmt: skip
def test_errors_about_the_kernel_name_its_variable(tmp_path, data):
    with pytest.raises(GuestError) as told:
        plan_of(tmp_path, data)
    assert setting_of(str(told.value)) == "VLLMD_HYPERVISOR_KERNEL_FILEPATH"
