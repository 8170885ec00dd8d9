"""Tiny guest programs: 32-bit protected mode code put together from accesses.

Values read are stored as 8-byte slots from RESULT_GPA on; ``reads`` of them after the run.
"""

from __future__ import annotations

import struct

RESULT_GPA = 0x200000
STACK_TOP_GPA = 0x1F0000
POWER_PORT = 0x600
POWER_OFF = 0x34


class Program:
    """Appends instructions; ``code`` is what to put at the entry."""

    def __init__(self) -> None:
        self.code = bytearray(b"\xfa\xbc" + struct.pack("<I", STACK_TOP_GPA))  # cli; mov esp
        self.reads = 0

    def raw(self, code: str) -> Program:
        self.code += bytes.fromhex(code)
        return self

    def _port(self, port: int) -> None:
        self.code += b"\x66\xba" + struct.pack("<H", port)  # mov dx, port

    def out(self, port: int, value: int, size: int = 1) -> Program:
        self._port(port)
        self.code += b"\xb8" + struct.pack("<I", value)  # mov eax, value
        self.code += {1: b"\xee", 2: b"\x66\xef", 4: b"\xef"}[size]
        return self

    def read_port(self, port: int, size: int = 1) -> int:
        """Returns the number of the result."""
        self._port(port)
        self.code += b"\x31\xc0"  # xor eax, eax
        self.code += {1: b"\xec", 2: b"\x66\xed", 4: b"\xed"}[size]
        return self._store()

    def write(self, gpa: int, value: int, size: int = 4) -> Program:
        self.code += b"\xb8" + struct.pack("<I", value)
        self.code += {1: b"\xa2", 2: b"\x66\xa3", 4: b"\xa3"}[size] + struct.pack("<I", gpa)
        return self

    def read(self, gpa: int, size: int = 4) -> int:
        self.code += b"\x31\xc0"
        self.code += {1: b"\xa0", 2: b"\x66\xa1", 4: b"\xa1"}[size] + struct.pack("<I", gpa)
        return self._store()

    def _store(self) -> int:
        self.code += b"\xa3" + struct.pack("<I", RESULT_GPA + 8 * self.reads)
        self.reads += 1
        return self.reads - 1

    def wait16(self, gpa: int, value: int) -> Program:
        """Polls a word in RAM until it is ``value``, as a driver without interrupts does."""
        self.code += b"\x66\xa1" + struct.pack("<I", gpa)
        self.code += b"\x66\x3d" + struct.pack("<H", value) + b"\x75\xf4"
        return self

    def wait_ticks(self, port: int, ticks: int) -> Program:
        """Spins until the 32-bit counter at ``port`` went on by ``ticks``."""
        self._port(port)
        self.code += b"\xed\x89\xc3"  # in eax, dx; mov ebx, eax
        self.code += b"\xed\x29\xd8\x3d" + struct.pack("<I", ticks) + b"\x72\xf6"
        return self

    def out_string(self, port: int, text: bytes) -> Program:
        """``rep outsb``: one exit for many bytes."""
        self._port(port)
        # call over the text; its address is then on the stack
        self.code += b"\xe8" + struct.pack("<I", len(text)) + text
        self.code += b"\x5e\xb9" + struct.pack("<I", len(text)) + b"\xfc\xf3\x6e"
        return self

    def power_off(self) -> bytes:
        self.out(POWER_PORT, POWER_OFF)
        self.code += b"\xf4"
        return bytes(self.code)
