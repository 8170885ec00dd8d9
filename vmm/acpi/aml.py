"""A minimal AML writer: functions that return the bytes of a term.

Source: ACPI 6.5, chapter 20 (AML), 6.4 (resource descriptors). Names are those of the grammar.
"""

from __future__ import annotations

import struct

SYSTEM_MEMORY = 0
BYTE_ACC = 1
LOCAL0 = b"\x60"
ARG0 = b"\x68"
ARG1 = b"\x69"
ARG2 = b"\x6a"


def pkg_length(length: int) -> bytes:
    """PkgLength for ``length`` bytes that follow it (20.2.4); it counts itself."""
    for size, limit in ((1, 1 << 6), (2, 1 << 12), (3, 1 << 20), (4, 1 << 28)):
        total = length + size
        if total < limit:
            if size == 1:
                return bytes([total])
            return bytes([size - 1 << 6 | total & 0xF]) + (total >> 4).to_bytes(size - 1, "little")
    raise ValueError(f"an AML package of {length} bytes: at most {(1 << 28) - 5}")


def package_term(opcode: bytes, body: bytes) -> bytes:
    """An opcode followed by a PkgLength and a body."""
    return opcode + pkg_length(len(body)) + body


def name_string(path: str) -> bytes:
    """A NameString such as ``_SB_.PC00``; segments are padded with underscores (20.2.2)."""
    prefix = b""
    if path.startswith("\\"):
        prefix, path = b"\\", path[1:]
    segments = [part.ljust(4, "_").encode("ascii") for part in path.split(".") if part]
    if any(len(segment) != 4 for segment in segments):
        raise ValueError(f"{path}: an AML name segment has 1 to 4 characters")
    if len(segments) > 2:
        prefix += b"\x2f" + bytes([len(segments)])
    elif len(segments) == 2:
        prefix += b"\x2e"
    elif not segments:
        prefix += b"\x00"
    return prefix + b"".join(segments)


def integer(value: int) -> bytes:
    """The shortest encoding of a constant (20.2.3)."""
    if value in (0, 1):
        return bytes([value])
    for prefix, size in ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8)):
        if value < 1 << 8 * size:
            return bytes([prefix]) + value.to_bytes(size, "little")
    raise ValueError(f"{value:#x} does not fit an AML integer")


def string(text: str) -> bytes:
    """A String constant."""
    return b"\x0d" + text.encode("ascii") + b"\0"


def buffer(data: bytes) -> bytes:
    """A Buffer with these bytes."""
    return package_term(b"\x11", integer(len(data)) + data)


def package(*items: bytes) -> bytes:
    """A Package of these terms."""
    return package_term(b"\x12", bytes([len(items)]) + b"".join(items))


def eisa_id(text: str) -> bytes:
    """An EISA id such as PNP0A08 as an integer (19.6.36)."""
    letters = [ord(c) - 0x40 for c in text[:3]]
    number = letters[0] << 26 | letters[1] << 21 | letters[2] << 16 | int(text[3:], 16)
    return b"\x0c" + number.to_bytes(4, "big")


def uuid(text: str) -> bytes:
    """A UUID as a 16-byte buffer (19.6.142): the first three groups are little endian."""
    groups = [bytes.fromhex(group) for group in text.split("-")]
    return buffer(b"".join([*(group[::-1] for group in groups[:3]), *groups[3:]]))


def name(path: str, value: bytes) -> bytes:
    """Name(path, value)."""
    return b"\x08" + name_string(path) + value


def scope(path: str, *terms: bytes) -> bytes:
    """Scope(path) { terms }."""
    return package_term(b"\x10", name_string(path) + b"".join(terms))


def device(path: str, *terms: bytes) -> bytes:
    """Device(path) { terms }."""
    return package_term(b"\x5b\x82", name_string(path) + b"".join(terms))


def method(path: str, arguments: int, serialized: bool, *terms: bytes) -> bytes:
    """Method(path, arguments, serialized) { terms }."""
    flags = arguments | (8 if serialized else 0)
    return package_term(b"\x14", name_string(path) + bytes([flags]) + b"".join(terms))


def operation_region(path: str, space: int, offset: int, length: int) -> bytes:
    """OperationRegion(path, space, offset, length)."""
    return b"\x5b\x80" + name_string(path) + bytes([space]) + integer(offset) + integer(length)


def field(region: str, access: int, *fields: tuple[str, int]) -> bytes:
    """Field(region, access, NoLock, WriteAsZeros) of (name, bits)."""
    body = name_string(region) + bytes([access | 2 << 5])
    for label, bits in fields:
        body += label.encode("ascii").ljust(4, b"_") + _field_bits(bits)
    return package_term(b"\x5b\x81", body)


def _field_bits(bits: int) -> bytes:
    # A field's width is encoded as a PkgLength that does not count itself.
    if bits < 1 << 6:
        return bytes([bits])
    return bytes([1 << 6 | bits & 0xF, bits >> 4])


def store(value: bytes, target: bytes) -> bytes:
    """Store(value, target)."""
    return b"\x70" + value + target


def and_(left: bytes, right: bytes) -> bytes:
    """And(left, right) without a target."""
    return b"\x7b" + left + right + b"\x00"


def equal(left: bytes, right: bytes) -> bytes:
    """LEqual(left, right)."""
    return b"\x93" + left + right


def if_(condition: bytes, *terms: bytes) -> bytes:
    """If (condition) { terms }."""
    return package_term(b"\xa0", condition + b"".join(terms))


def return_(value: bytes) -> bytes:
    """Return(value)."""
    return b"\xa4" + value


def notify(path: str, code: int) -> bytes:
    """Notify(path, code)."""
    return b"\x86" + name_string(path) + integer(code)


def call(path: str, *arguments: bytes) -> bytes:
    """A method invocation."""
    return name_string(path) + b"".join(arguments)


def resources(*descriptors: bytes) -> bytes:
    """ResourceTemplate: descriptors and the end tag, whose checksum 0 means unchecked."""
    return buffer(b"".join(descriptors) + b"\x79\x00")


def io(start: int, length: int, alignment: int = 1) -> bytes:
    """IO(Decode16, start, start, alignment, length)."""
    return struct.pack("<BBHHBB", 0x47, 1, start, start, alignment, length)


def memory32_fixed(start: int, length: int, writable: bool = True) -> bytes:
    """Memory32Fixed."""
    return struct.pack("<BHBII", 0x86, 9, int(writable), start, length)


def interrupt(gsi: int) -> bytes:
    """Interrupt(ResourceConsumer, Edge, ActiveHigh, Exclusive) { gsi }."""
    return struct.pack("<BHBBI", 0x89, 6, 0b0011, 1, gsi)


def word_bus_number(low: int, high: int) -> bytes:
    """WordBusNumber(ResourceProducer, MinFixed, MaxFixed, PosDecode)."""
    return struct.pack("<BHBBBHHHHH", 0x88, 13, 2, 0x0C, 0, 0, low, high, 0, high - low + 1)


def word_io(low: int, high: int) -> bytes:
    """WordIO(ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange)."""
    return struct.pack("<BHBBBHHHHH", 0x88, 13, 1, 0x0C, 3, 0, low, high, 0, high - low + 1)


def qword_memory(start: int, length: int) -> bytes:
    """QWordMemory(ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite)."""
    end = start + length - 1
    return struct.pack("<BHBBBQQQQQ", 0x8A, 43, 0, 0x0C, 1, 0, start, end, 0, length)
