"""Kernel files of any content: loaded, or refused with a reason, and soon."""

from __future__ import annotations

import os

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.elf_builder import LOAD_GPA, aligned_note, build_elf, other_note
from tests.support.tiny_bzimage import build_bzimage
from vmm._native.memory.guestmem import GuestMemory
from vmm.boot import kernel
from vmm.errors import GuestError

RAM = 32 << 20
VALUES = st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255)


def try_to_load(folder, data: bytes) -> None:
    """What check_payload() lets through load_guest() loads; all else is a GuestError."""
    path, initramfs = folder / "kernel", folder / "initramfs"
    path.write_bytes(data)
    initramfs.write_bytes(bytes(5000))
    try:
        fd, plan = kernel.open_plan(str(path), None)
    except GuestError as error:
        assert str(path) in str(error)
        return
    memory = GuestMemory([(0, RAM)])
    try:
        kernel.check_payload(plan, str(path), "quiet", str(initramfs), RAM)
    except GuestError:
        return
    else:
        kernel.load_guest(plan, fd, str(path), memory, str(initramfs), "quiet")
    finally:
        memory.close()
        os.close(fd)


@settings(max_examples=200, deadline=None)
@given(changes=st.dictionaries(st.integers(0x1F1, 0x268), VALUES, max_size=12))
def test_any_setup_header(tmp_path_factory, changes):
    fields = {offset: bytes([value]) for offset, value in changes.items()}
    try_to_load(tmp_path_factory.mktemp("bz"), build_bzimage(changes=fields))


@settings(max_examples=200, deadline=None)
@given(changes=st.dictionaries(st.integers(4, 0x120), VALUES, max_size=8))
def test_any_elf_header(tmp_path_factory, changes):
    data = bytearray(build_elf(b"\xf4" * 16, loads=((0x400000, 0x1000), (0x500000, 0x1000))))
    for offset, value in changes.items():
        data[offset] = value
    try_to_load(tmp_path_factory.mktemp("elf"), bytes(data))


@settings(max_examples=200, deadline=None)
@given(changes=st.dictionaries(st.integers(0, 119), VALUES, max_size=10), align=st.integers(0, 16))
def test_any_note(tmp_path_factory, changes, align):
    notes = bytearray(other_note(20, 8) + aligned_note(LOAD_GPA, 8) + bytes(80))
    for offset, value in changes.items():
        notes[offset] = value
    data = build_elf(b"\xf4" * 16, notes_at_end=bytes(notes), note_align=align)
    try_to_load(tmp_path_factory.mktemp("notes"), data)
