from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.elf_builder import LOAD_GPA, build_elf, xen_note
from vmm._native.memory.guestmem import GuestMemory
from vmm.boot import kernel
from vmm.boot.image import PVH
from vmm.errors import GuestError


def plan_of(tmp_path, data, cache=None):
    path = tmp_path / "kernel"
    path.write_bytes(data)
    fd, plan = kernel.open_plan(str(path), cache)
    os.close(fd)
    return plan


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("note_size", [4, 8])
def test_pvh_elf(tmp_path, bits, note_size):
    code = b"\xf4" * 100
    plan = plan_of(tmp_path, build_elf(code, bits=bits, bss=50, note=xen_note(LOAD_GPA, note_size)))
    assert plan.kind == PVH
    assert plan.entry == LOAD_GPA
    (segment,) = plan.segments
    assert (segment.gpa, segment.file_size, segment.memory_size) == (LOAD_GPA, 100, 150)


def test_loading_puts_the_bytes_where_they_belong(tmp_path):
    path = tmp_path / "kernel"
    path.write_bytes(build_elf(b"\x90" * 5000 + b"\xf4", bss=64))
    initramfs = tmp_path / "initramfs"
    initramfs.write_bytes(b"cpio" * 3000)
    memory = GuestMemory([(0, 4 << 20)])
    fd, plan = kernel.open_plan(str(path), None)
    try:
        kernel.load_guest(plan, fd, str(path), memory, str(initramfs), "console=hvc0")
    finally:
        os.close(fd)
    assert memory.read(LOAD_GPA, 5001) == b"\x90" * 5000 + b"\xf4"
    assert memory.read(0x20000, 13) == b"console=hvc0\0"
    start_info = memory.read(0x6000, 56)
    assert start_info[:4] == (0x336EC578).to_bytes(4, "little")
    assert int.from_bytes(start_info[0x0C:0x10], "little") == 1
    module = int.from_bytes(memory.read(0x6040, 8), "little")
    assert memory.read(module, 12000) == b"cpio" * 3000
    assert module == ((4 << 20) - 12000) & ~4095
    memory.close()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"\x1f\x8b" + bytes(100), "gzip"),
        (b"QFI\xfb" + bytes(100), "qcow2"),
        (b"hello world, this is no kernel", "starts with the bytes 68 65"),
        (b"\x7fELF", "damaged ELF"),
        (build_elf(b"\xf4", note=b""), "without a PVH entry"),
        (build_elf(b"\xf4", note=xen_note(LOAD_GPA, kind=17)), "without a PVH entry"),
        (build_elf(b"\xf4", machine=183), "EM_AARCH64"),
        (build_elf(b"\xf4" * 4096)[:-1], "cut short"),
        (build_elf(b"\xf4", gpa=0x8000), "kernels go to"),
        (build_elf(b"\xf4", entry=0x200000), "lies in nothing"),
    ],
)
def test_bad_kernels_are_told(tmp_path, data, message):
    with pytest.raises(GuestError, match=message):
        plan_of(tmp_path, data)


def test_too_little_ram_is_told(tmp_path):
    path = tmp_path / "kernel"
    path.write_bytes(build_elf(b"\xf4", bss=8 << 20))
    memory = GuestMemory([(0, 4 << 20)])
    fd, plan = kernel.open_plan(str(path), None)
    with pytest.raises(GuestError, match="needs RAM at.*MEMORY_CONFIG"):
        kernel.load_guest(plan, fd, str(path), memory, None, "")
    os.close(fd)
    memory.close()


def test_the_cache_gives_the_same_plan_and_ignores_damage(tmp_path):
    data = build_elf(b"\xf4" * 10)
    cache = str(tmp_path / "cache")
    first = plan_of(tmp_path, data, cache)
    (entry,) = os.listdir(cache)
    path = os.path.join(cache, entry)
    fd, again = kernel.open_plan(str(tmp_path / "kernel"), cache)
    os.close(fd)
    assert again == first
    for damage in (b"", b"x" * 30, open(path, "rb").read()[:-1]):
        with open(path, "wb") as stream:
            stream.write(damage)
        fd, again = kernel.open_plan(str(tmp_path / "kernel"), cache)
        os.close(fd)
        assert again == first


def test_a_cached_plan_that_lies_about_the_file_is_refused(tmp_path):
    from vmm.boot import plancache
    from vmm.boot.image import LoadPlan, Segment

    path = tmp_path / "kernel"
    path.write_bytes(build_elf(b"\xf4" * 10))
    lie = LoadPlan(PVH, LOAD_GPA, (Segment(0, 1 << 30, LOAD_GPA, 1 << 30),))
    plancache.store(str(tmp_path / "cache"), os.stat(path), lie)
    with pytest.raises(GuestError, match="cut short"):
        kernel.open_plan(str(path), str(tmp_path / "cache"))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_elf_files_never_crash(tmp_path_factory, data):
    image = bytearray(build_elf(b"\xf4" * 16, bits=data.draw(st.sampled_from([32, 64]))))
    for _ in range(data.draw(st.integers(1, 8))):
        image[data.draw(st.integers(4, 0x240))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("elf") / "kernel"
    path.write_bytes(bytes(image))
    try:
        fd, _ = kernel.open_plan(str(path), None)
        os.close(fd)
    except GuestError as error:
        assert str(path) in str(error)
