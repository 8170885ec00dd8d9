"""Which blocks of the snapshot's heap a start writes to, and which it reads: these lie together.

An interpreter counts references in each object that it uses: few bytes, on many pages, and each
page has to be copied. valgrind's lackey tells every address that a start uses (its manual, 15.2).
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from rehearsal import Rehearsals

HEAD = struct.Struct("<IIQ")  # struct block of heap.c: size, number, next
PLACING = struct.Struct("<3I")  # struct vmm_placing of snapshot.h, and a byte for each call
WRITTEN, READ, NEITHER = range(3)  # its areas
UNIT, PAGE = 16, 4096
TOOL = ("valgrind", "--tool=lackey", "--trace-mem=yes")
# A load, a store, or both: "address,size" behind it.
ACCESS = re.compile(rb"^ ([LSM]) ([0-9a-f]+),", re.MULTILINE)
SECONDS = 300.0
CHUNK = 1 << 20


class Heap(NamedTuple):
    """Its address and bytes, with begin and end of what is used of each area."""

    start: int
    memory: bytes
    areas: list[tuple[int, int]]


class Block(NamedTuple):
    """Offset and size of one with its head, and the number of the call that allocated it."""

    at: int
    size: int
    number: int

    @property
    def units(self) -> range:
        """Numbers of the units that it has beside its head."""
        return range((self.at + HEAD.size) // UNIT, (self.at + self.size) // UNIT)


def have_valgrind() -> bool:
    """Whether there is the tool for this."""
    return shutil.which(TOOL[0]) is not None


def placing(executable: Path, heap: Heap) -> bytes:
    """A struct vmm_placing, by a start of ``executable``, which has this heap.

    RehearsalError where that start fails.
    """
    used = units_used(executable, heap)
    area_of = {block: area(block, used) for block in blocks(heap)}
    table = bytearray([NEITHER]) * (max(block.number for block in area_of) + 1)
    sizes = [0, 0, 0]
    for block, found in area_of.items():
        table[block.number] = found
        sizes[found] += block.size
    written, read = [-(-size // PAGE) * PAGE for size in sizes[:NEITHER]]
    return PLACING.pack(written, read, len(table)) + table


def blocks(heap: Heap) -> Iterator[Block]:
    """All of them."""
    for at, end in heap.areas:
        while at < end:
            size, number, _ = HEAD.unpack_from(heap.memory, at)
            yield Block(at, HEAD.size + size, number)
            at += HEAD.size + size


def area(block: Block, used: tuple[set[int], set[int]]) -> int:
    """Where a block belongs, by the units that a start has written to, and read."""
    for found in (WRITTEN, READ):
        if not used[found].isdisjoint(block.units):
            return found
    return NEITHER


def units_used(executable: Path, heap: Heap) -> tuple[set[int], set[int]]:
    """Numbers of the units of 16 bytes of the heap that a start writes to, and that it reads."""
    found: tuple[set[int], set[int]] = (set(), set())
    reader, writer = os.pipe()
    with Rehearsals(executable) as rehearsals, open(reader, "rb") as trace:
        following = threading.Thread(target=_follow, args=(trace, heap, found))
        following.start()
        try:
            tool = (*TOOL, f"--log-fd={writer}")
            # The tool's own system calls would be taken for the program's.
            off = {"VLLMD_HYPERVISOR_SECCOMP": "off"}
            with rehearsals.start(*tool, seconds=SECONDS, pass_fds=(writer,), **off):
                pass
        finally:
            os.close(writer)
            following.join()
    return found


def _follow(trace: BinaryIO, heap: Heap, found: tuple[set[int], set[int]]) -> None:
    rest = b""
    while chunk := trace.read(CHUNK):
        whole, _, rest = (rest + chunk).rpartition(b"\n")
        for kind, address in set(ACCESS.findall(whole)):
            at = int(address, 16) - heap.start
            if 0 <= at < len(heap.memory):
                found[READ if kind == b"L" else WRITTEN].add(at // UNIT)
