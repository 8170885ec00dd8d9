"""The static executable against flaws in native code, and whose code is in it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support import checksec
from tests.support.binary import BINARY, ROOT, difference
from tests.support.packaging_tools import load

WORK = ROOT / "build/binary"
# Handwritten, or without a function that has a buffer.
WITHOUT_CODE = {"frozen.o", "tables.o", "heap.o"}


@pytest.fixture(autouse=True)
def built():
    if BINARY.exists() and (WORK / "parts.json").exists():
        return
    if os.environ.get("VLLMD_TEST_KVM") == "1":
        pytest.fail(f"{BINARY} is not built here: make binary")
    pytest.skip(f"{BINARY} is not built here: make binary")


def objects() -> list[Path]:
    return sorted(path for path in WORK.glob("*.o") if path.name not in WITHOUT_CODE)


def test_nothing_is_writable_and_executable_and_all_relocations_are_done():
    assert checksec.weaknesses(BINARY) == []


def test_it_is_at_fixed_addresses_and_its_snapshot_is_not_read_only():
    """No position independence: the snapshot has pointers. And RELRO stops before its data."""
    with open(BINARY, "rb") as file:
        elf = checksec.ELFFile(file)
        assert elf["e_type"] == "ET_EXEC"
        (relro,) = [one for one in elf.iter_segments() if one["p_type"] == "PT_GNU_RELRO"]
        end = relro["p_vaddr"] + relro["p_memsz"]
        assert end <= elf.get_section_by_name(".snapshot")["sh_addr"]


def test_our_half_of_it_looks_after_its_frames_and_buffers():
    """By the objects that it was linked from: it is stripped."""
    without = [path.name for path in objects() if not checksec.has_canaries(path)]
    assert len(objects()) > 40
    assert without == []
    assert {name for path in objects() for name in checksec.fortified(path)} >= {"__memcpy_chk"}


def test_our_half_of_it_is_ready_for_indirect_branch_tracking():
    """The whole is not: its note is of all objects, and Debian's libc.a and libpython have none."""
    assert {path.name for path in objects() if checksec.features(path) != {"IBT", "SHSTK"}} == set()
    natives = [path for path in objects() if path.name.startswith("vmm.")]
    for path in natives:
        init = "PyInit_" + path.name.removesuffix(".o").replace(".", "__")
        assert checksec.begins_with_endbr(path, init)
    assert checksec.features(BINARY) == set()


def told(*words: str) -> str:
    return subprocess.run([BINARY, *words], capture_output=True, text=True, check=True).stdout


def test_it_tells_what_is_linked_in():
    parts = {row[0]: row for row in json.loads((WORK / "parts.json").read_text())}
    assert set(parts) >= {
        "Cython",
        "gcc-12",
        "glibc",
        "liburing",
        "pyelftools",
        "python3.11",
        "zlib",
    }
    lines = told("--version", "--verbose").splitlines()
    assert lines[0] == told("--version").rstrip("\n")
    assert [line.split(maxsplit=2) for line in lines[1:]] == [
        list(row[:3]) for row in parts.values()
    ]


def test_the_list_is_what_the_linker_took():
    """Of every archive in the linker's map, and of every object that is not ours."""
    parts = load("parts")
    linked = parts.inputs((WORK / "linked.map").read_text())
    assert {path.name for path in linked} >= {"libc.a", "libpython3.11.a", "liburing.a", "libz.a"}
    strangers = {path for path in linked if not path.is_relative_to(WORK.resolve())}
    known = {row[0] for row in json.loads((WORK / "parts.json").read_text())}
    assert {part.name for part in parts.of_debian(strangers)} == known - {"Cython", "pyelftools"}


def test_where_two_differ_is_told_in_one_line(tmp_path):
    data = bytearray(BINARY.read_bytes())
    assert difference(BINARY, BINARY) == ""
    with open(BINARY, "rb") as file:
        text = checksec.ELFFile(file).get_section_by_name(".text")
        data[text["sh_offset"] + 0x123] ^= 1
    (tmp_path / "other").write_bytes(data)
    said = difference(BINARY, tmp_path / "other")
    assert f"in .text + 0x123 (address {text['sh_addr'] + 0x123:#x})" in said
    assert len(said) < 200
