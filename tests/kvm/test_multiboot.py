"""A Multiboot kernel starts with the registers, tables and command line that the spec names."""

from __future__ import annotations

import struct

import vmm
from tests.support.guest_asm import RESULT_GPA, Program
from tests.support.multiboot_elf import multiboot_elf

WORDS = "kernel words=1"


def test_a_kernel_sees_what_the_specification_says(tmp_path):
    """eax, ebx and what the kernel itself reads through ebx: flags, and its command line."""
    program = Program()
    program.code = bytearray(b"\xa3" + struct.pack("<I", RESULT_GPA))  # mov [result], eax
    program.code += b"\x89\x1d" + struct.pack("<I", RESULT_GPA + 8)  # mov [result + 8], ebx
    program.code += b"\x8b\x03\xa3" + struct.pack("<I", RESULT_GPA + 16)  # mov eax, [ebx]; store
    program.code += b"\x8b\x73\x10\xbf" + struct.pack("<I", RESULT_GPA + 32)  # esi: cmdline; edi
    program.code += b"\xb9" + struct.pack("<I", len(WORDS) + 1) + b"\xfc\xf3\xa4"  # rep movsb
    program.power_off()
    kernel = tmp_path / "guest.elf"
    kernel.write_bytes(multiboot_elf(bytes(program.code)))
    with vmm.Guest(kernel=kernel, memory="16M", cmdline=WORDS) as guest:
        assert guest.run(seconds=20).kind == "ended"
        eax, ebx, flags = struct.unpack("<3Q", guest.memory.read(RESULT_GPA, 24))
        assert (eax, ebx, flags & 0x45) == (0x2BADB002, 0x6000, 0x45)
        assert guest.memory.read(RESULT_GPA + 32, len(WORDS) + 1) == WORDS.encode() + b"\0"
