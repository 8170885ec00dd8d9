"""Descriptions of types (BTF), made by hand."""

from __future__ import annotations

import struct

from vmm.guest.btf import HEADER, MAGIC

INT, ARRAY, STRUCT, UNION, TYPEDEF = 1, 3, 4, 5, 8


class Builder:
    """Types one after the other; each method returns the number of the type."""

    def __init__(self) -> None:
        self.types = b""
        self.names = b"\0"
        self.count = 0

    def name(self, text: str) -> int:
        if not text:
            return 0
        self.names += text.encode() + b"\0"
        return len(self.names) - len(text) - 1

    def add(self, name: str, kind: int, parts: int, last: int, behind: bytes, flag: int = 0) -> int:
        self.types += struct.pack(
            "<III", self.name(name), flag << 31 | kind << 24 | parts, last
        ) + behind  # fmt: skip
        self.count += 1
        return self.count

    def number(self, name: str) -> int:
        return self.add(name, INT, 0, 4, struct.pack("<I", 32))

    def struct(self, name: str, size: int, *members: tuple[str, int, int], kind: int = STRUCT,
               flag: int = 0) -> int:  # fmt: skip
        rows = [struct.pack("<III", self.name(n), t, offset) for n, t, offset in members]
        return self.add(name, kind, len(rows), size, b"".join(rows), flag)

    def data(self) -> bytes:
        head = HEADER.pack(
            MAGIC, 1, 0, HEADER.size, 0, len(self.types), len(self.types), len(self.names)
        )
        return head + self.types + self.names
