"""Core files: their form as pyelftools reads it, holes, and what happens when there is no room."""

from __future__ import annotations

import os
import struct
import tempfile

import pytest
from elftools.elf.elffile import ELFFile

from tests.support.fake_kernel import BANNER, FakeKernel
from vmm._native.memory.guestmem import GuestMemory
from vmm.errors import HostError
from vmm.guest import coredump
from vmm.guest.coredump import write_core
from vmm.guest.symbols import Symbols
from vmm.guest.vmcoreinfo import find_vmcoreinfo, text_of

MIB = 1 << 20
REGIONS = [(0, 2 * MIB), (1 << 32, MIB)]
TEXT = b"OSRELEASE=6.1.0\nPAGESIZE=4096\n"
SEGMENT = {
    "base": 0, "limit": 0xFFFFFFFF, "selector": 0x10, "type": 11, "present": 1, "dpl": 0, "db": 0,
    "s": 1, "l": 1, "g": 1, "avl": 0,
}  # fmt: skip
GENERAL = (*coredump.QEMU_REGS,)


def cpu(number: int) -> dict:
    regs = {name: number * 0x1000 + n for n, name in enumerate(GENERAL)}
    segments = {name: dict(SEGMENT) for name in coredump.QEMU_SEGMENTS}
    segments["gs"]["base"] = 0xFFFF888000000000
    tables = {"gdt": (0xFFFFFE0000001000, 0x7F), "idt": (0xFFFFFE0000000000, 0xFFF)}
    return {**regs, **segments, **tables, "cr0": 1, "cr2": 2, "cr3": 3, "cr4": 4}


@pytest.fixture
def memory():
    ram = GuestMemory.anonymous(REGIONS)
    ram.write(0x1000, b"first")
    ram.write(MIB - 2, b"over")
    ram.write((1 << 32) + MIB - 4, b"last")
    yield ram
    ram.close()


def notes(elf: ELFFile) -> list[tuple[str, int, bytes]]:
    (segment,) = [s for s in elf.iter_segments() if s["p_type"] == "PT_NOTE"]
    data, found = segment.data(), []
    while data:
        name_size, size, kind = struct.unpack_from("<III", data)
        at = 12 + -(-name_size // 4) * 4
        found.append((data[12 : 11 + name_size].decode(), kind, data[at : at + size]))
        data = data[at + -(-size // 4) * 4 :]
    return found


def test_what_readers_find(tmp_path, memory):
    path, told = tmp_path / "core", []
    size = write_core(str(path), memory, [cpu(1), cpu(2)], TEXT, lambda *done: told.append(done))
    assert size == path.stat().st_size
    assert path.stat().st_mode & 0o777 == 0o600
    assert told[0] == (0, 3 * MIB)
    assert told[-1] == (3 * MIB, 3 * MIB)
    with open(path, "rb") as stream:
        elf = ELFFile(stream)
        assert (elf["e_type"], elf["e_machine"]) == ("ET_CORE", "EM_X86_64")
        loads = [s for s in elf.iter_segments() if s["p_type"] == "PT_LOAD"]
        assert [(s["p_paddr"], s["p_vaddr"], s["p_memsz"]) for s in loads] == [
            (gpa, gpa, size) for gpa, size in REGIONS
        ]
        for load, (gpa, length) in zip(loads, REGIONS, strict=True):
            assert load["p_offset"] % 4096 == 0
            assert load.data() == memory.read(gpa, length)
        found = notes(elf)
    assert [(name, kind) for name, kind, _ in found] == [
        ("CORE", 1), ("CORE", 1), ("QEMU", 0), ("QEMU", 0), ("VMCOREINFO", 0),
    ]  # fmt: skip
    assert found[-1][2] == TEXT
    status, state = found[1][2], found[3][2]
    assert len(status) == 336
    assert struct.unpack_from("<I", status, 32) == (2,)
    # user_regs_struct: rip is word 16, rsp word 19, gs_base word 22.
    words = struct.unpack_from("<27Q", status, 112)
    assert (words[16], words[19], words[22]) == (cpu(2)["rip"], cpu(2)["rsp"], 0xFFFF888000000000)
    assert struct.unpack_from("<II", state) == (1, len(state)) == (1, 440)
    assert struct.unpack_from("<5Q", state, 392) == (1, 0, 2, 3, 4)
    # A flat code segment's descriptor: 0xa09b in the upper half.
    assert struct.unpack_from("<III", state, 152) == (0x10, 0xFFFFFFFF, 0xA09B00)


def test_zeros_are_holes(tmp_path, memory):
    path = tmp_path / "core"
    write_core(str(path), memory, [cpu(1)])
    assert path.stat().st_blocks * 512 < 128 << 10


def test_into_a_descriptor(memory):
    with tempfile.TemporaryFile() as file:
        size = write_core(file.fileno(), memory, [cpu(1)])
        assert os.fstat(file.fileno()).st_size == size
        assert ELFFile(file)["e_type"] == "ET_CORE"


def test_it_replaces_a_file_only_when_all_is_there(tmp_path, memory):
    path = tmp_path / "core"
    path.write_bytes(b"the one before")

    def fail(done: int, total: int) -> None:
        assert path.read_bytes() == b"the one before"
        if done > MIB:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_core(str(path), memory, [cpu(1)], progress=fail)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("core", b"the one before")]
    write_core(str(path), memory, [cpu(1)])
    assert [p.name for p in tmp_path.iterdir()] == ["core"]


def test_a_full_disk_is_told_and_nothing_left(tmp_path, memory, monkeypatch):
    real, written = os.pwrite, []

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        written.append(len(data))
        if len(written) > 2:
            raise OSError(28, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    path = tmp_path / "core"
    with pytest.raises(HostError, match="core file .*core: No space left on device.*free space"):
        write_core(str(path), memory, [cpu(1)])
    assert list(tmp_path.iterdir()) == []
    written.clear()
    with open(path, "wb") as file:
        with pytest.raises(HostError, match="No space left"):
            write_core(file.fileno(), memory, [cpu(1)])
        assert os.fstat(file.fileno()).st_size == 0


def test_a_short_write_goes_on(tmp_path, memory, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:1000], at))
    path = tmp_path / "core"
    write_core(str(path), memory, [cpu(1)])
    with open(path, "rb") as stream:
        loads = [s for s in ELFFile(stream).iter_segments() if s["p_type"] == "PT_LOAD"]
        assert loads[0].data() == memory.read(0, 2 * MIB)


def test_a_folder_that_is_not_there(tmp_path, memory):
    with pytest.raises(HostError, match="absent/core: No such file.*user may write"):
        write_core(str(tmp_path / "absent/core"), memory, [cpu(1)])


def note(text: bytes, size: int | None = None) -> bytes:
    size = len(text) if size is None else size
    return struct.pack("<III", 11, size, 0) + b"VMCOREINFO\0\0" + text


def test_vmcoreinfo_by_the_kernels_pointer_and_by_search():
    kernel = FakeKernel([("B", "vmcoreinfo_note", 0x280000)])
    symbols = Symbols.from_ram(kernel.memory, kernel.paging)
    assert find_vmcoreinfo(kernel.memory, kernel.paging, symbols) is None
    pointer, direct = kernel.gpa(symbols["vmcoreinfo_note"]), 0xFFFF888000000000
    kernel.memory.write(0x300000, note(TEXT))
    kernel.memory.write(0x301000, note(b"OSRELEASE=another\n"))
    kernel.memory.write(pointer, struct.pack("<Q", direct + 0x301000))
    found = find_vmcoreinfo(kernel.memory, kernel.paging, symbols)
    assert found == b"OSRELEASE=another\n"
    assert find_vmcoreinfo(kernel.memory) == TEXT
    kernel.memory.write(pointer, struct.pack("<Q", 1 << 62))
    assert find_vmcoreinfo(kernel.memory, kernel.paging, symbols) == TEXT


@pytest.mark.parametrize(
    "data",
    [
        b"",
        note(TEXT)[:20],
        note(TEXT, 1 << 31),
        note(TEXT, len(TEXT) + 1),
        note(b"x" * 5000),
        note(b"OSRELEASE=" + b"\xff"),
        note(BANNER),
        b"\0" * 100,
    ],
)
def test_what_is_no_such_note(data):
    assert text_of(data) is None
