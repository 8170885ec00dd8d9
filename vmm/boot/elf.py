"""ELF kernels and firmware with a PVH entry, or else a Multiboot header.

pyelftools reads the ELF's headers, this file the notes.
Source: the ELF specification; Xen's PVH boot protocol (docs/misc/pvh.pandoc), whose note
XEN_ELFNOTE_PHYS32_ENTRY gives the physical address of a 32-bit entry point. A file may claim
anything: only its file header, its program headers and a limited number of notes are read.
"""

from __future__ import annotations

import struct

from vmm.boot.image import MULTIBOOT, PVH, LoadPlan, Segment, kernel_error
from vmm.errors import GuestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, BinaryIO

    from elftools.elf.elffile import ELFFile

XEN_ELFNOTE_PHYS32_ENTRY = 18
XEN = b"Xen\0"
# EDK2's note has 4 bytes of address, rust-hypervisor-firmware's 8; the first 4 count in both.
ENTRY_BYTES = 4
MACHINES = ("EM_386", "EM_X86_64")
SEGMENTS_MAX = 256
NOTE = struct.Struct("<III")
# A kernel has a dozen. A file could have a billion, of which each takes a read.
NOTES_MAX = 4096
ALIGNMENTS = (4, 8)


def plan_elf(stream: BinaryIO, path: str, size: int) -> LoadPlan:
    """The load plan of an ELF file; GuestError tells what about it cannot be booted."""
    # Imported here: it takes 28 ms, and a plan from the cache does without.
    from elftools.elf.elffile import ELFFile

    try:
        return _plan(ELFFile(stream), path, _Notes(stream, path, size))
    except GuestError:
        raise
    # A damaged file makes the parser fail in any of its layers, each with exceptions of its own.
    except Exception as error:
        raise kernel_error(
            path, f"a damaged ELF file: {error or type(error).__name__}",
            "copy or build the file again",
        ) from error  # fmt: skip


def _plan(elf: ELFFile, path: str, notes: _Notes) -> LoadPlan:
    machine = elf["e_machine"]
    if machine not in MACHINES or not elf.little_endian:
        raise kernel_error(
            path, f"an ELF file for {machine}, not for x86", "use a kernel built for x86-64"
        )
    segments = []
    entry = None
    for header in _program_headers(elf, path):
        if header.p_type == "PT_LOAD" and header.p_memsz:
            segments.append(
                Segment(header.p_offset, header.p_filesz, header.p_paddr, header.p_memsz)
            )
        elif header.p_type == "PT_NOTE" and entry is None:
            entry = notes.entry(header.p_offset, header.p_filesz, header.p_align)
    if entry is not None:
        return LoadPlan(PVH, entry, tuple(segments))
    from vmm.boot.multiboot import SEARCHED, has_header

    elf.stream.seek(0)
    if has_header(elf.stream.read(SEARCHED), path):
        return LoadPlan(MULTIBOOT, elf["e_entry"], tuple(segments))
    raise kernel_error(
        path,
        "an ELF file without a PVH entry (note XEN_ELFNOTE_PHYS32_ENTRY) or a Multiboot header",
        "build the kernel with CONFIG_PVH=y, or give its bzImage (vmlinuz) instead",
    )


def _program_headers(elf: ELFFile, path: str) -> list[Any]:
    """The headers alone: the parser's segments would go on to sections and tables."""
    from elftools.common.utils import struct_parse

    count = elf["e_phnum"]
    if count > SEGMENTS_MAX:
        raise kernel_error(
            path, f"{count} ELF segments, more than {SEGMENTS_MAX}", "use a kernel image"
        )
    start, step = elf["e_phoff"], elf["e_phentsize"]
    return [
        struct_parse(elf.structs.Elf_Phdr, elf.stream, stream_pos=start + number * step)
        for number in range(count)
    ]


class _Notes:
    """Looks for the entry in the notes of one file, of which it reads NOTES_MAX at most."""

    def __init__(self, stream: BinaryIO, path: str, size: int) -> None:
        self._stream = stream
        self._path = path
        self._size = size
        self._left = NOTES_MAX

    def entry(self, offset: int, length: int, alignment: int) -> int | None:
        """The entry that a segment of notes gives, or None.

        Linkers align notes as the segment says, to 4 or 8 bytes; some say 8 of a segment in which
        notes aligned to 4 stand behind one aligned to 8. So the other way is tried as well.
        """
        end = min(offset + length, self._size)
        for align in sorted(ALIGNMENTS, key=lambda each: each != alignment):
            found = self._search(offset, end, align)
            if found is not None:
                return found
        return None

    def _search(self, offset: int, end: int, align: int) -> int | None:
        while offset + NOTE.size <= end:
            self._count()
            name_size, size, kind = NOTE.unpack(self._read(offset, NOTE.size))
            data = offset + _aligned(NOTE.size + name_size, align)
            if data + size > end:
                return None
            ours = kind == XEN_ELFNOTE_PHYS32_ENTRY and name_size == len(XEN)
            if ours and size >= ENTRY_BYTES and self._read(offset + NOTE.size, len(XEN)) == XEN:
                return int.from_bytes(self._read(data, ENTRY_BYTES), "little")
            offset = data + _aligned(size, align)
        return None

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise kernel_error(
                self._path, f"no PVH entry among the first {NOTES_MAX} notes of this ELF file",
                "use a kernel image",
            )  # fmt: skip

    def _read(self, offset: int, size: int) -> bytes:
        self._stream.seek(offset)
        return self._stream.read(size)


def _aligned(size: int, align: int) -> int:
    return -(-size // align) * align
