"""ELF kernels and firmware with a PVH entry, read by pyelftools.

Source: the ELF specification; Xen's PVH boot protocol (docs/misc/pvh.pandoc), whose note
XEN_ELFNOTE_PHYS32_ENTRY gives the physical address of a 32-bit entry point.
"""

from __future__ import annotations

from vmm.boot.image import PVH, LoadPlan, Segment
from vmm.errors import GuestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

    from elftools.elf.elffile import ELFFile

XEN_ELFNOTE_PHYS32_ENTRY = 18
# EDK2's note has 4 bytes of address, rust-hypervisor-firmware's 8; the first 4 count in both.
ENTRY_BYTES = 4
MACHINES = ("EM_386", "EM_X86_64")
SEGMENTS_MAX = 256


def plan_elf(stream: BinaryIO, path: str) -> LoadPlan:
    """The load plan of an ELF file; GuestError tells what about it cannot be booted."""
    # Imported here: it takes 28 ms, and a plan from the cache does without.
    from elftools.elf.elffile import ELFFile

    try:
        return _plan(ELFFile(stream), path)
    except GuestError:
        raise
    # A damaged file makes the parser fail in any of its layers, each with exceptions of its own.
    except Exception as error:
        raise GuestError(
            f"{path}: a damaged ELF file: {error}", "copy or build the file again"
        ) from error


def _plan(elf: ELFFile, path: str) -> LoadPlan:
    machine = elf["e_machine"]
    if machine not in MACHINES or not elf.little_endian:
        raise GuestError(
            f"{path}: an ELF file for {machine}, not for x86", "use a kernel built for x86-64"
        )
    if elf.num_segments() > SEGMENTS_MAX:
        raise GuestError(
            f"{path}: {elf.num_segments()} ELF segments, more than {SEGMENTS_MAX}",
            "use a kernel image",
        )
    segments = []
    entry = None
    for segment in elf.iter_segments():
        header = segment.header
        if header.p_type == "PT_LOAD" and header.p_memsz:
            segments.append(
                Segment(header.p_offset, header.p_filesz, header.p_paddr, header.p_memsz)
            )
        elif header.p_type == "PT_NOTE" and entry is None:
            entry = _pvh_entry(segment)
    if entry is None:
        raise GuestError(
            f"{path}: an ELF file without a PVH entry (note XEN_ELFNOTE_PHYS32_ENTRY)",
            "build the kernel with CONFIG_PVH=y, or give its bzImage (vmlinuz) instead",
        )
    return LoadPlan(PVH, entry, tuple(segments))


def _pvh_entry(segment: object) -> int | None:
    for note in segment.iter_notes():  # type: ignore[attr-defined]
        if note["n_name"] != "Xen" or note["n_type"] != XEN_ELFNOTE_PHYS32_ENTRY:
            continue
        data = note["n_descdata"]
        if len(data) >= ENTRY_BYTES:
            return int.from_bytes(data[:ENTRY_BYTES], "little")
    return None
