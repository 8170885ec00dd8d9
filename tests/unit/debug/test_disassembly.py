"""Machine code as text: the modes, ends of memory, bytes that are no code, no capstone."""

from __future__ import annotations

import sys

import pytest

from vmm.debug.disassembly import BAD, block_starts, code_bits, disassemble
from vmm.errors import HostError


def reader(code: bytes, base: int = 0x1000):
    def read(address: int, length: int) -> bytes:
        if address < base or address + length > base + len(code):
            raise ValueError(f"gva {address:#x} leads nowhere")
        return code[address - base : address - base + length]

    return read


@pytest.mark.parametrize(
    ("bits", "words"),
    [(64, "mov rax, rbx"), (32, "dec eax"), (16, "dec ax")],
)
def test_each_mode_reads_its_own(bits, words):
    found = disassemble(reader(bytes.fromhex("4889d8") + bytes(32)), 0x1000, 1, bits)
    assert found[0].text == words


def test_names_bytes_and_text():
    code = bytes.fromhex("55 4889e5 c3") + bytes(32)
    found = disassemble(reader(code), 0x1000, 3, 64, lambda at: f"f+{at - 0x1000:#x}")
    assert [(one.address, one.bytes.hex(), one.text) for one in found] == [
        (0x1000, "55", "push rbp"), (0x1001, "4889e5", "mov rbp, rsp"), (0x1004, "c3", "ret"),
    ]  # fmt: skip
    assert found[1].symbol == "f+0x1"
    assert "mov rbp, rsp  f+0x1" in str(found)
    assert "<pre>" in found._repr_html_()


def test_the_end_of_what_is_mapped():
    # The page ends in the middle of what may be an instruction.
    code = bytes(4094) + b"\x90\xc3"
    assert [one.text for one in disassemble(reader(code), 0x1FFE, 9)] == ["nop", "ret"]
    assert disassemble(reader(b""), 0x1000, 3) == []
    # A page-crossing instruction: mov eax, 0x11223344
    code = bytes(4094) + bytes.fromhex("b844332211") + bytes(32)
    assert disassemble(reader(code), 0x1FFE, 1, 32)[0].text == "mov eax, 0x11223344"


def test_bytes_that_are_no_instruction():
    found = disassemble(reader(b"\x06\x90" + bytes(32)), 0x1000, 2, 64)
    assert [one.text for one in found] == [BAD, "nop"]


def test_blocks_of_a_function():
    # test eax, eax; je +1; inc eax; ret
    listing = disassemble(reader(bytes.fromhex("85c0 7402 ffc0 c3") + bytes(32)), 0x1000, 4)
    assert block_starts(listing) == [0x1000, 0x1004, 0x1006]
    assert block_starts([]) == []


def test_modes_of_the_code_segment():
    assert code_bits({"cs": {"l": 1, "db": 0}}) == 64
    assert code_bits({"cs": {"l": 0, "db": 1}}) == 32
    assert code_bits({"cs": {"l": 0, "db": 0}}) == 16


def test_what_is_wrong_is_named(monkeypatch):
    with pytest.raises(ValueError, match="n=0"):
        disassemble(reader(b""), 0, 0)
    monkeypatch.setitem(sys.modules, "capstone", None)
    with pytest.raises(HostError, match=r"disassemble\(\) needs the Python package capstone"):
        disassemble(reader(b"\x90"), 0x1000, 1)
