"""Names of code addresses, fast enough for the thread that answers `stop`."""

from __future__ import annotations

import struct
import time

import pytest

from vmm.guest.symbolat import symbol_at

BASE = 0xFFFFFFFF81000000
FUNC, OBJECT = 2, 1


def elf(symbols: list[tuple[str, int, int]], bits: int = 64, paddr: int = 0x1000000) -> bytes:
    """An ELF file with one PT_LOAD and a symbol table of (name, value, type)."""
    names, table = bytearray(1), bytearray()
    form = "<IBBHQQ" if bits == 64 else "<IIIBBH"
    for name, value, kind in [("", 0, 0), *symbols]:
        at = len(names) if name else 0
        names += name.encode() + b"\0" if name else b""
        table += (
            struct.pack(form, at, kind, 0, 1, value, 0)
            if bits == 64
            else struct.pack(form, at, value, 0, kind, 0, 1)
        )
    vaddr = BASE if bits == 64 else BASE & 0xFFFFFFFF
    sizes = (64, 56, 64) if bits == 64 else (52, 32, 40)
    head, segment, section = sizes
    sections_at = head + segment
    table_at = sections_at + 3 * section
    names_at = table_at + len(table)
    word = "Q" if bits == 64 else "I"
    ident = b"\x7fELF" + bytes([2 if bits == 64 else 1]) + b"\x01\x01" + bytes(9)
    data = ident + struct.pack(
        f"<HHI{word}{word}{word}IHHHHHH", 2, 62, 1, 0, head, sections_at, 0, head, segment, 1,
        section, 3, 0,
    )  # fmt: skip
    if bits == 64:
        data += struct.pack("<IIQQQQQQ", 1, 7, 0, vaddr, paddr, 0, 1 << 24, 0)
    else:
        data += struct.pack("<IIIIIIII", 1, 0, vaddr, paddr, 0, 1 << 24, 7, 0)
    shape = f"<II{word}{word}{word}{word}II{word}{word}"
    data += struct.pack(shape, *[0] * 10)
    data += struct.pack(shape, 0, 2, 0, 0, table_at, len(table), 2, 1, 8, 24)
    data += struct.pack(shape, 0, 3, 0, 0, names_at, len(names), 0, 0, 1, 0)
    return data + table + names


@pytest.mark.parametrize("bits", [64, 32])
def test_the_nearest_code_symbol_by_either_address(tmp_path, bits):
    base = BASE if bits == 64 else BASE & 0xFFFFFFFF
    path = tmp_path / "kernel"
    path.write_bytes(
        elf([("later", base + 0x40, FUNC), ("start", base, 0), ("data", base + 9, OBJECT)], bits)
    )
    assert symbol_at(str(path), base + 0x10) == "start+0x10"
    assert symbol_at(str(path), base + 0x40) == "later"
    assert symbol_at(str(path), 0x1000000 + 0x41) == "later+0x1"
    assert symbol_at(str(path), base - 1) is None
    assert symbol_at(str(path), base + (2 << 20)) is None


def test_a_hundred_thousand_symbols_keep_nobody_waiting(tmp_path):
    path = tmp_path / "kernel"
    path.write_bytes(elf([(f"symbol_{n}", BASE + 16 * n, FUNC) for n in range(100_000)]))
    started = time.process_time()
    assert symbol_at(str(path), BASE + 16 * 77_777 + 3) == "symbol_77777+0x3"
    assert time.process_time() - started < 0.5


def test_files_that_end_early_and_damaged_fields(tmp_path):
    whole = elf([("start", BASE, FUNC)])
    path = tmp_path / "kernel"
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        found = symbol_at(str(path), BASE)
        assert found is None or "start".startswith(found)
    for place in range(16, len(whole) - 8):
        path.write_bytes(whole[:place] + b"\xff" * 8 + whole[place + 8 :])
        symbol_at(str(path), BASE)
