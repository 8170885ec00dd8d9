"""A FAT16 file system with a few files in its root (Microsoft's FAT specification, 1.03). Pure.

FAT, since every guest that boots by UEFI mounts it, and firmwares do, too. The same files give the
same bytes: no time of the day is in them.
"""

from __future__ import annotations

from binascii import crc32

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

SECTOR = 512
RESERVED_SECTORS = 1
FATS = 2
ROOT_ENTRIES = 512
ROOT_SECTORS = ROOT_ENTRIES * 32 // SECTOR
# By its number of clusters alone a FAT is one of 16 bits; some way off both limits.
CLUSTERS_MIN = 4085 + 11
CLUSTERS_MAX = 65524 - 24
CLUSTER_SECTORS_MAX = 64
FIRST_CLUSTER = 2
MEDIA_FIXED = 0xF8
END_OF_CHAIN = 0xFFFF
ATTR_VOLUME_ID = 0x08
ATTR_ARCHIVE = 0x20
ATTR_LONG_NAME = 0x0F
LAST_LONG_ENTRY = 0x40
LONG_NAME_PART = 13
# 1 January 1980, the first day there is.
DATE = (0x0021).to_bytes(2, "little")
OEM_NAME = b"VLLMD   "
LABEL_BYTES = 11


def u16(value: int) -> bytes:
    """Two bytes, little-endian."""
    return value.to_bytes(2, "little")


def u32(value: int) -> bytes:
    """Four bytes, little-endian."""
    return value.to_bytes(4, "little")


def make(label: str, files: Mapping[str, bytes]) -> tuple[int, list[tuple[int, bytes]]]:
    """The size of an image, and (offset, bytes) of all in it that is not zero.

    ValueError for more than fits, some 2 GB.
    """
    counts = [0]
    cluster_sectors = 1
    while cluster_sectors <= CLUSTER_SECTORS_MAX:
        size = cluster_sectors * SECTOR
        counts = [-(-len(content) // size) for content in files.values()]
        if sum(counts) <= CLUSTERS_MAX:
            break
        cluster_sectors *= 2
    else:
        raise ValueError("the files are too large for a FAT16 file system")
    clusters = max(sum(counts), CLUSTERS_MIN)
    table_sectors = -(-(clusters + FIRST_CLUSTER) * 2 // SECTOR)
    root = RESERVED_SECTORS + FATS * table_sectors
    data = root + ROOT_SECTORS
    total = data + clusters * cluster_sectors
    serial = 0
    for name, content in files.items():
        serial = crc32(content, crc32(name.encode(), serial))
    table = _table(counts)
    pieces = [(0, _boot_sector(label, cluster_sectors, table_sectors, total, serial))]
    pieces += [
        ((RESERVED_SECTORS + n * table_sectors) * SECTOR, table) for n in range(FATS)
    ]  # fmt: skip
    entries = bytearray(_entry(_padded_label(label), ATTR_VOLUME_ID))
    cluster = FIRST_CLUSTER
    for number, (name, content) in enumerate(files.items(), 1):
        count = counts[number - 1]
        entries += _file_entries(name, number, cluster if count else 0, len(content))
        if content:
            at = data + (cluster - FIRST_CLUSTER) * cluster_sectors
            pieces.append((at * SECTOR, content))
        cluster += count
    pieces.append((root * SECTOR, bytes(entries)))
    return total * SECTOR, pieces


def _padded_label(label: str) -> bytes:
    return label.encode("ascii").ljust(LABEL_BYTES)


def _boot_sector(
    label: str, cluster_sectors: int, table_sectors: int, total: int, serial: int
) -> bytes:
    """BIOS parameter block of FAT12 and FAT16, with no code to boot."""
    small = total if total < 1 << 16 else 0
    block = b"\xeb\x3c\x90" + OEM_NAME + u16(SECTOR) + bytes([cluster_sectors])
    block += u16(RESERVED_SECTORS) + bytes([FATS]) + u16(ROOT_ENTRIES) + u16(small)
    block += bytes([MEDIA_FIXED]) + u16(table_sectors)
    # Sectors a track and heads that nobody uses, and no sectors before this volume.
    block += u16(32) + u16(64) + u32(0) + u32(0 if small else total)
    block += b"\x80\0\x29" + u32(serial) + _padded_label(label) + b"FAT16   "
    return block.ljust(SECTOR - 2, b"\0") + b"\x55\xaa"


def _table(counts: list[int]) -> bytes:
    """The file allocation table: each file in clusters that follow one another."""
    table = u16(0xFF00 | MEDIA_FIXED) + u16(END_OF_CHAIN)
    cluster = FIRST_CLUSTER
    for count in counts:
        chain = [u16(n) for n in range(cluster + 1, cluster + count)]
        table += b"".join(chain) + (u16(END_OF_CHAIN) if count else b"")
        cluster += count
    return table


def _entry(name: bytes, attributes: int, cluster: int = 0, size: int = 0) -> bytes:
    """A directory entry: name of 8 and 3 bytes, times of nought."""
    head = name + bytes([attributes, 0, 0]) + u16(0) + DATE + DATE + u16(0)
    return head + u16(0) + DATE + u16(cluster) + u32(size)


def _file_entries(name: str, number: int, cluster: int, size: int) -> bytes:
    """Entries of a file: its long name, last part first, then its short one, NAME~1 in capitals."""
    plain = "".join([char for char in name.upper() if char.isalnum() or char in "-_"])
    tail = f"~{number}"
    short = (plain[: 8 - len(tail)] + tail).ljust(11).encode("ascii")
    checksum = 0
    for byte in short:
        checksum = ((checksum << 7 | checksum >> 1) + byte) & 0xFF
    parts = [name[at : at + LONG_NAME_PART] for at in range(0, len(name), LONG_NAME_PART)]
    entries = b""
    for order, part in reversed(list(enumerate(parts, 1))):
        # UTF-16 by hand: the static executable has no codec for it.
        text = b"".join([bytes([byte, 0]) for byte in part.encode("ascii")])
        text = (text + b"\0\0" * (len(part) < LONG_NAME_PART)).ljust(2 * LONG_NAME_PART, b"\xff")
        last = LAST_LONG_ENTRY if order == len(parts) else 0
        entries += bytes([order | last]) + text[:10] + bytes([ATTR_LONG_NAME, 0, checksum])
        entries += text[10:22] + u16(0) + text[22:]
    return entries + _entry(short, ATTR_ARCHIVE, cluster, size)
