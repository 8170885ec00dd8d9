"""Guest RAM and registers as an ELF core file, for crash, drgn, gdb and volatility.

One PT_LOAD for each region of RAM, with guest physical addresses; one NT_PRSTATUS note and one
note of QEMU's form (control registers) for each vCPU; VMCOREINFO where the guest has it. Zeros
become holes. The file appears whole or not at all.
Source: System V ABI, chapter 4; elf.h; QEMU's target/i386/arch_dump.c, whose form such tools know.
"""

from __future__ import annotations

import contextlib
import os
import struct
from errno import EDQUOT, EFBIG, ENOSPC

from vmm.errors import HostError
from vmm.guest.vmcoreinfo import NAME as VMCOREINFO
from vmm.light.freshfile import fresh_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    from vmm.guest.pagetables import Memory

    # (bytes of RAM done, bytes of RAM in all), on the caller's thread.
    Progress = Callable[[int, int], None]

ET_CORE, EM_X86_64 = 4, 62
PT_LOAD, PT_NOTE = 1, 4
NT_PRSTATUS = 1
FILE_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
IDENT = b"\x7fELF\x02\x01\x01" + bytes(9)
READ_WRITE_EXECUTE = 7
# struct elf_prstatus: pid at 32, registers at 112, in the order of struct user_regs_struct.
PRSTATUS = struct.Struct("<32xI76x27Q8x")
USER_REGS = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi",
    "rdi", "orig_rax", "rip", "cs", "rflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs",
    "gs",
)  # fmt: skip
# struct QEMUCPUState: version, size, registers, segments, control registers, kernel_gs_base.
QEMU_REGS = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15", "rip", "rflags",
)  # fmt: skip
QEMU_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "ldt", "tr")
QEMU_TABLES = ("gdt", "idt")
QEMU_SEGMENT = struct.Struct("<IIIIQ")
# Where kvm_segment's fields stand in a descriptor's upper half (Intel SDM volume 3, 3.4.5).
FLAGS = (
    ("type", 8), ("s", 12), ("dpl", 13), ("present", 15), ("avl", 20), ("l", 21), ("db", 22),
    ("g", 23),
)  # fmt: skip
PAGE = 4096
PIECE_BYTES = 1 << 20
FULL = (ENOSPC, EDQUOT, EFBIG)


def no_progress(done: int, total: int) -> None:
    """For callers that do not want to know."""


def write_core(
    target: str | int,
    memory: Memory,
    cpus: Sequence[Mapping[str, Any]],
    vmcoreinfo: bytes | None = None,
    progress: Progress = no_progress,
) -> int:
    """Write the core of a guest that stands still; returns the file's size in bytes.

    ``target`` is a path, which appears when all is written and replaces what was there, or the
    descriptor of an empty regular file. ``cpus``: of each vCPU what KVM_GET_REGS and KVM_GET_SREGS
    have, in one mapping. HostError when the file cannot be written; nothing of it is left then.
    RAM that the guest never touched is read as well. Any thread.
    """
    if isinstance(target, int):
        try:
            return _write(target, f"descriptor {target}", memory, cpus, vmcoreinfo, progress)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(target, 0)
            raise
    try:
        # It holds what the guest holds: nobody else may read it.
        with fresh_file(target) as fd:
            return _write(fd, target, memory, cpus, vmcoreinfo, progress)
    except OSError as error:
        raise _failed(target, error) from error


def _failed(target: str, error: OSError) -> HostError:
    told = f"cannot write the core file {target}: {error.strerror}"
    if error.errno in FULL:
        return HostError(told, "free space there, or name a file on a larger file system")
    return HostError(told, "name a file that this user may write")


def _write(
    fd: int,
    name: str,
    memory: Memory,
    cpus: Sequence[Mapping[str, Any]],
    vmcoreinfo: bytes | None,
    progress: Progress,
) -> int:
    total, done = sum([size for _, size in memory.regions]), 0
    try:
        offset = write_frame(fd, memory.regions, cpus, vmcoreinfo)
        progress(0, total)
        for gpa, size in memory.regions:
            for at in range(0, size, PIECE_BYTES):
                piece = memory.read(gpa + at, min(PIECE_BYTES, size - at))
                for start, data in _data(piece):
                    _pwrite(fd, data, offset + start)
                offset += len(piece)
                done += len(piece)
                progress(done, total)
    except OSError as error:
        raise _failed(name, error) from error
    return offset


def write_frame(
    fd: int,
    regions: Sequence[tuple[int, int]],
    cpus: Sequence[Mapping[str, Any]],
    vmcoreinfo: bytes | None,
) -> int:
    """Write all of a core but RAM, which is one hole; returns where in the file RAM begins.

    ``fd`` is an empty regular file's or a memfd. OSError when it cannot be written. Any thread.
    """
    notes = b"".join(_notes(cpus, vmcoreinfo))
    headers, first = _headers(regions, len(notes))
    _pwrite(fd, headers + notes, 0)
    os.ftruncate(fd, first + sum([size for _, size in regions]))
    return first


def _pwrite(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


def _data(piece: bytes) -> Iterator[tuple[int, memoryview]]:
    """(offset, bytes) of the runs of pages that are not all zero."""
    zeros, view, start = bytes(PAGE), memoryview(piece), -1
    if piece == bytes(len(piece)):
        return
    for at in range(0, len(piece), PAGE):
        if piece[at : at + PAGE] == zeros:
            if start >= 0:
                yield start, view[start:at]
            start = -1
        elif start < 0:
            start = at
    if start >= 0:
        yield start, view[start:]


def _headers(regions: Sequence[tuple[int, int]], notes_size: int) -> tuple[bytes, int]:
    """(ELF header and program headers, where in the file the first region begins)."""
    count = len(regions) + 1
    notes_at = FILE_HEADER.size + count * PROGRAM_HEADER.size
    offset = first = -(-(notes_at + notes_size) // PAGE) * PAGE
    parts = [
        FILE_HEADER.pack(
            IDENT, ET_CORE, EM_X86_64, 1, 0, FILE_HEADER.size, 0, 0, FILE_HEADER.size,
            PROGRAM_HEADER.size, count, 0, 0, 0,
        ),
        PROGRAM_HEADER.pack(PT_NOTE, 0, notes_at, 0, 0, notes_size, notes_size, 0),
    ]  # fmt: skip
    for gpa, size in regions:
        # Without paging a dump has the physical address in both places, as QEMU's.
        parts.append(
            PROGRAM_HEADER.pack(PT_LOAD, READ_WRITE_EXECUTE, offset, gpa, gpa, size, size, 0)
        )
        offset += size
    return b"".join(parts), first


def _notes(cpus: Sequence[Mapping[str, Any]], vmcoreinfo: bytes | None) -> Iterator[bytes]:
    """Crash wants all of one kind together."""
    for number, cpu in enumerate(cpus, 1):
        yield _note(b"CORE", NT_PRSTATUS, _prstatus(number, cpu))
    for cpu in cpus:
        yield _note(b"QEMU", 0, _qemu_state(cpu))
    if vmcoreinfo is not None:
        yield _note(VMCOREINFO, 0, vmcoreinfo)


def _note(name: bytes, kind: int, content: bytes) -> bytes:
    head = struct.pack("<III", len(name) + 1, len(content), kind)
    return head + _padded(name + b"\0") + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _prstatus(number: int, cpu: Mapping[str, Any]) -> bytes:
    return PRSTATUS.pack(number, *[_user_register(cpu, name) for name in USER_REGS])


def _user_register(cpu: Mapping[str, Any], name: str) -> int:
    if name == "orig_rax":
        return 0
    if name.endswith("_base"):
        return int(cpu[name.removesuffix("_base")]["base"])
    value = cpu[name]
    return int(value if isinstance(value, int) else value["selector"])


def _qemu_state(cpu: Mapping[str, Any]) -> bytes:
    registers = struct.pack(f"<{len(QEMU_REGS)}Q", *[cpu[name] for name in QEMU_REGS])
    segments = [
        QEMU_SEGMENT.pack(
            cpu[name]["selector"], cpu[name]["limit"],
            sum([cpu[name][field] << shift for field, shift in FLAGS]), 0, cpu[name]["base"],
        )
        for name in QEMU_SEGMENTS
    ]  # fmt: skip
    tables = [QEMU_SEGMENT.pack(0, cpu[name][1], 0, 0, cpu[name][0]) for name in QEMU_TABLES]
    control = struct.pack("<5Q", cpu["cr0"], 0, cpu["cr2"], cpu["cr3"], cpu["cr4"])
    content = b"".join(
        [registers, *segments, *tables, control, struct.pack("<Q", cpu.get("kernel_gs_base", 0))]
    )
    return struct.pack("<II", 1, 8 + len(content)) + content
