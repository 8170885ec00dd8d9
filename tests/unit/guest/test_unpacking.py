"""The two jumps of a bzImage, found in its file."""

from __future__ import annotations

import struct

import pytest

from vmm.errors import GuestError
from vmm.guest.unpacking import unpacking_of

SETUP, PAYLOAD, LENGTH, BEHIND = 3, 0x40, 0x100, 0x150


def bzimage(jump: bytes = b"\xff\xe0", behind: int = BEHIND, end: bytes = b"\x90\xff\xe0") -> bytes:
    head = bytearray((SETUP + 1) * 512)
    head[0x1F1] = SETUP
    struct.pack_into("<I", head, 0x214, 0x100000)
    struct.pack_into("<II", head, 0x248, PAYLOAD, LENGTH)
    code = bytearray(BEHIND + 0x100)
    code[PAYLOAD - 9 : PAYLOAD] = b"\x48\x8d\x83" + struct.pack("<I", behind) + jump
    # A jump in the payload is none.
    code[PAYLOAD + 8 : PAYLOAD + 10] = b"\xff\xe0"
    code[BEHIND : BEHIND + len(end)] = end
    return bytes(head + code)


def test_both_jumps(tmp_path):
    path = tmp_path / "vmlinuz"
    path.write_bytes(bzimage())
    found = unpacking_of(str(path))
    assert (found.first, found.second) == (0x100000 + PAYLOAD - 2, 1)


@pytest.mark.parametrize(
    "data",
    [b"", bzimage()[:0x240], bzimage()[:0x830], bzimage(jump=b"\xff\xd0"), bzimage(behind=0x90),
     bzimage(end=b""), b"\x7fELF" * 1000],
)  # fmt: skip
def test_other_files(tmp_path, data):
    path = tmp_path / "vmlinuz"
    path.write_bytes(data)
    with pytest.raises(GuestError, match="vmlinuz.*give a vmlinux"):
        unpacking_of(str(path))
