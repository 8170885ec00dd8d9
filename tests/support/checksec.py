"""What an ELF file has against flaws in native code: what checksec(1) looks at, by pyelftools."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from elftools.elf.constants import P_FLAGS, SH_FLAGS
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.enums import ENUM_DT_FLAGS, ENUM_DT_FLAGS_1
from elftools.elf.sections import NoteSection, SymbolTableSection

PAGE = 4096
ENDBR64 = bytes.fromhex("f30f1efa")
# GNU_PROPERTY_X86_FEATURE_1_AND of the x86-64 psABI.
FEATURES = {1: "IBT", 2: "SHSTK"}


def weaknesses(path: Path) -> list[str]:
    """What a linked file lacks; [] for one that has all."""
    with open(path, "rb") as file:
        elf = ELFFile(file)
        segments = list(elf.iter_segments())
        return [*_stack(segments), *_writable(segments), *_relro(elf, segments), *_dynamic(elf),
                *_code(elf, segments)]  # fmt: skip


def _of_type(segments: list[Any], kind: str) -> list[Any]:
    return [segment for segment in segments if segment["p_type"] == kind]


def _stack(segments: list[Any]) -> list[str]:
    stacks = _of_type(segments, "PT_GNU_STACK")
    if not stacks:
        return ["no PT_GNU_STACK: the kernel makes the stack executable"]
    return ["an executable stack"] if stacks[0]["p_flags"] & P_FLAGS.PF_X else []


def _writable(segments: list[Any]) -> list[str]:
    both = P_FLAGS.PF_W | P_FLAGS.PF_X
    return [
        f"a segment at {segment['p_vaddr']:#x} that is writable and executable"
        for segment in _of_type(segments, "PT_LOAD")
        if segment["p_flags"] & both == both
    ]


def _relro(elf: ELFFile, segments: list[Any]) -> list[str]:
    """All of the global offset table is read-only in time, up to a page's end."""
    found = _of_type(segments, "PT_GNU_RELRO")
    if not found:
        return ["no PT_GNU_RELRO"]
    begin, end = found[0]["p_vaddr"], found[0]["p_vaddr"] + found[0]["p_memsz"]
    told = [] if end % PAGE == 0 else [f"RELRO ends at {end:#x}, inside a page"]
    for name in (".got", ".got.plt", ".data.rel.ro", ".init_array", ".fini_array", ".dynamic"):
        section = elf.get_section_by_name(name)
        if section is not None and section["sh_size"]:
            at = section["sh_addr"]
            if not begin <= at <= at + section["sh_size"] <= end:
                told.append(f"{name} stays writable")
    return told


def _dynamic(elf: ELFFile) -> list[str]:
    """A static executable has no dynamic section, and nothing that is bound late."""
    tags: dict[str, int] = {}
    for section in elf.iter_sections():
        if isinstance(section, DynamicSection):
            tags.update({tag.entry.d_tag: tag.entry.d_val for tag in section.iter_tags()})
    flags = tags.get("DT_FLAGS", 0)
    told = []
    if tags and not (
        "DT_BIND_NOW" in tags
        or flags & ENUM_DT_FLAGS["DF_BIND_NOW"]
        or tags.get("DT_FLAGS_1", 0) & ENUM_DT_FLAGS_1["DF_1_NOW"]
    ):
        told.append("no BIND_NOW")
    if "DT_TEXTREL" in tags or flags & ENUM_DT_FLAGS["DF_TEXTREL"]:
        told.append("relocations in code")
    return told


def _code(elf: ELFFile, segments: list[Any]) -> list[str]:
    """Nothing but code is executable: no header, no constants, nothing in one page with it."""
    told = []
    for segment in _of_type(segments, "PT_LOAD"):
        if not segment["p_flags"] & P_FLAGS.PF_X:
            continue
        inside = [one for one in elf.iter_sections() if segment.section_in_segment(one)]
        told += [
            f"{section.name} is executable"
            for section in inside
            if section["sh_flags"] & SH_FLAGS.SHF_ALLOC
            and not section["sh_flags"] & SH_FLAGS.SHF_EXECINSTR
        ]
        if segment["p_offset"] == 0:
            told.append("the ELF header is executable")
    return told


# Name, info, other, section, value, size: Elf64_Sym of elf(5), which pyelftools reads slowly.
SYMBOL = struct.Struct("<IBBHQQ")
UNDEFINED = 0


def table(elf: ELFFile) -> Iterator[tuple[str, int, int]]:
    """(name, number of its section, value) of each symbol."""
    for section in elf.iter_sections():
        if isinstance(section, SymbolTableSection):
            names = elf.get_section(section["sh_link"]).data()
            for at, _, _, number, value, _ in SYMBOL.iter_unpack(section.data()):
                yield names[at : names.index(b"\0", at)].decode(), number, value


def needed(path: Path) -> set[str]:
    """The symbols that a module or object has from elsewhere."""
    with open(path, "rb") as file:
        return {name for name, number, _ in table(ELFFile(file)) if number == UNDEFINED}


def fortified(path: Path) -> set[str]:
    """The functions that it calls in the form that knows the size of what is written to."""
    return {name for name in needed(path) if name.startswith("__") and name.endswith("_chk")}


def has_canaries(path: Path) -> bool:
    """Some function of it looks whether its frame was overwritten."""
    return "__stack_chk_fail" in needed(path)


def features(path: Path) -> set[str]:
    """IBT and SHSTK, as far as the file's property note promises them."""
    found: set[str] = set()
    with open(path, "rb") as file:
        for section in ELFFile(file).iter_sections():
            if isinstance(section, NoteSection) and section.name == ".note.gnu.property":
                for note in section.iter_notes():
                    for each in note["n_desc"]:
                        if each.pr_type == "GNU_PROPERTY_X86_FEATURE_1_AND":
                            bits = each.pr_data
                            found |= {name for bit, name in FEATURES.items() if bits & bit}
    return found


def begins_with_endbr(path: Path, function: str) -> bool:
    """The function may be called through a pointer where the processor looks after that."""
    with open(path, "rb") as file:
        elf = ELFFile(file)
        for name, number, value in table(elf):
            if name == function and number != UNDEFINED:
                section = elf.get_section(number)
                # An object's symbols count from their section, those of what is linked do not.
                at = value - section["sh_addr"]
                return bool(section.data()[at : at + len(ENDBR64)] == ENDBR64)
    raise AssertionError(f"{path} has no {function}")
