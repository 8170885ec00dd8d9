"""Blocks of the snapshot's heap, placed by what a trace says of them."""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path

from tests.support.packaging_tools import load

placing = load("binary/placing")
START = 0x10000
SIZES = (32, 16, 4112, 64)


def heap():
    """The first two blocks lie in an area, the others in the next one, a page later."""
    blocks = [struct.pack("<IIQ", size, 7 * n, 0) + bytes(size) for n, size in enumerate(SIZES)]
    first, second = b"".join(blocks[:2]), b"".join(blocks[2:])
    memory = first.ljust(4096, b"\0") + second
    return placing.Heap(START, memory, [(0, len(first)), (4096, len(memory))])


def at(block: int) -> int:
    """Address of a block's first byte behind its head."""
    found = list(placing.blocks(heap()))[block]
    return START + found.at + 16


def test_blocks_are_found_in_all_areas():
    found = list(placing.blocks(heap()))
    assert [(block.size, block.number) for block in found] == [
        (16 + size, 7 * n) for n, size in enumerate(SIZES)
    ]
    assert [block.at for block in found] == [0, 48, 4096, 4096 + 4128]


def test_a_trace_says_what_is_written_and_read(monkeypatch):
    lines = [
        "==7== Lackey, an example Valgrind tool", f"I  {at(1):08x},3", f" L {at(1):08x},8",
        f" L {at(2) + 4000:x},8", f" M {at(2) + 4000:x},8", f" S {at(3) + 63:x},1",
        f" S {START - 1:x},8", f" S {START + len(heap().memory):x},8", f" L {at(3):x},4",
    ]  # fmt: skip
    used = (set(), set())
    monkeypatch.setattr(placing, "CHUNK", 5)  # lines are cut anywhere
    placing._follow(io.BytesIO("\n".join(lines).encode() + b"\n"), heap(), used)
    areas = [placing.area(block, used) for block in placing.blocks(heap())]
    assert areas == [placing.NEITHER, placing.READ, placing.WRITTEN, placing.WRITTEN]

    monkeypatch.setattr(placing, "units_used", lambda executable, heap: used)
    made = placing.placing(Path("executable"), heap())
    written, read, calls = struct.unpack_from("<3I", made)
    assert (written, read, calls) == (8192, 4096, 22)
    assert len(made) == 12 + calls
    assert [made[12 + 7 * n] for n in range(4)] == areas
    assert set(made[13:19]) == {placing.NEITHER}


def test_a_head_alone_is_no_use_of_a_block():
    used = ({(at(0) - 16 - START) // 16}, set())
    first = next(placing.blocks(heap()))
    assert placing.area(first, used) == placing.NEITHER


def test_both_sides_agree_on_the_form():
    header = Path(placing.__file__).with_name("snapshot.h").read_text()
    assert re.search(r"#define VMM_AREAS (\d+)", header)[1] == str(placing.NEITHER + 1)
    source = Path(placing.__file__).with_name("heap.c").read_text()
    assert "uint32_t size;" in source
    assert "uint32_t number;" in source
    assert placing.HEAD.size == 16
