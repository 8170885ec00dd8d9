"""What compiler and linker were asked for is in the native modules; each look can find its lack."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import checksec
from tests.support.packaging_tools import load, run

ROOT = Path(__file__).resolve().parents[3]
MODULES = sorted((ROOT / "vmm/_native").rglob("*.so"))
HARDENING = load("hardening")
# A buffer for canaries, a write into it whose length is not known, a function behind a pointer, and
# data with a relocation.
SOURCE = r"""
#include <string.h>
#include <stdlib.h>
int put(const char *from, unsigned long length)
{
    char room[16];
    memcpy(room, from, length);
    return room[0] + atoi(from) + abs(room[3]);
}
int (*const pointer)(const char *, unsigned long) = put;
"""
TEXT_RELOCATION = '.text\n.global f\nf: movabs $f, %rax\nret\n.section .note.GNU-stack,""\n'


def compiled(folder: Path, *without: str, more: tuple[str, ...] = ()) -> Path:
    """The object of a small source, with all options but some."""
    (folder / "plain.c").write_text(SOURCE)
    flags = [flag for flag in HARDENING.COMPILE if not flag.startswith(without or ("-never",))]
    target = folder / "plain.o"
    run("gcc", "-O2", "-fPIC", *flags, *more, "-c", folder / "plain.c", "-o", target)
    return target


def linked(folder: Path, *options: str, object_file: Path | None = None) -> Path:
    """A shared library, with other options of the linker behind all of ours."""
    target = folder / "plain.so"
    source = object_file or compiled(folder)
    run("gcc", "-shared", *HARDENING.LINK, *options, source, "-o", target)
    return target


def test_there_are_modules():
    assert len(MODULES) > 10, "make build"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name.partition(".")[0])
def test_a_native_module(path):
    assert checksec.weaknesses(path) == []
    assert checksec.has_canaries(path)
    assert checksec.begins_with_endbr(path, f"PyInit_{path.name.partition('.')[0]}")


def test_some_modules_call_what_knows_the_size():
    assert {name for path in MODULES for name in checksec.fortified(path)} >= {"__memcpy_chk"}


def test_all_is_found_in_what_has_it(tmp_path):
    built = compiled(tmp_path)
    assert checksec.weaknesses(linked(tmp_path, object_file=built)) == []
    assert checksec.has_canaries(built)
    assert checksec.fortified(built) == {"__memcpy_chk"}
    assert checksec.features(built) == {"IBT", "SHSTK"}
    assert checksec.begins_with_endbr(built, "put")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["-Wl,-z,execstack"], "an executable stack"),
        (["-Wl,-z,norelro"], "no PT_GNU_RELRO"),
        (["-Wl,-z,lazy"], "no BIND_NOW"),
        (["-Wl,-z,lazy"], ".got.plt stays writable"),
        (["-Wl,-z,noseparate-code"], "the ELF header is executable"),
        (["-Wl,--omagic", "-nostdlib"], "writable and executable"),
    ],
)
def test_a_lack_of_the_linker_s_is_found(tmp_path, options, told):
    assert told in "; ".join(checksec.weaknesses(linked(tmp_path, *options)))


def test_a_relocation_in_code_is_found(tmp_path):
    (tmp_path / "text.S").write_text(TEXT_RELOCATION)
    run("gcc", "-c", tmp_path / "text.S", "-o", tmp_path / "text.o")
    path = linked(tmp_path, "-Wl,-z,notext", object_file=tmp_path / "text.o")
    assert "relocations in code" in checksec.weaknesses(path)
    with pytest.raises(AssertionError, match="relocation"):
        linked(tmp_path, object_file=tmp_path / "text.o")


def test_a_lack_of_the_compiler_s_is_found(tmp_path):
    assert not checksec.has_canaries(
        compiled(tmp_path, "-fstack-p", more=("-fno-stack-protector",))
    )
    assert checksec.fortified(compiled(tmp_path, "-D_FORT")) == set()
    assert checksec.features(compiled(tmp_path, "-fcf", more=("-fcf-protection=none",))) == set()
    assert not checksec.begins_with_endbr(tmp_path / "plain.o", "put")


def test_what_is_linked_promises_no_more_than_all_of_it(tmp_path):
    """Of Debian 12's crti.o the linker knows nothing, and drops the note. Others keep it."""
    start = Path(run("gcc", "-print-file-name=crti.o").strip())
    assert checksec.features(linked(tmp_path)) == checksec.features(start) & {"IBT", "SHSTK"}
