"""What does ext4 do when its disk fails? A disk that is a Python class, and fails on demand.

    python examples/disk_errors.py AFTER [KERNEL INITRAMFS IMAGE [CONFIG_IMAGE]]

The disk is IMAGE, kept in memory; after AFTER writes each further one is an error. Shown is what
the guest's kernel says of it.
"""

from __future__ import annotations

import re
import struct
import sys
from pathlib import Path

from guests import settings

import vmm

READ, WRITE, FLUSH, IDENTIFY = 0, 1, 4, 8
OK, ERROR, UNSUPPORTED = b"\0", b"\1", b"\2"
FEATURE_FLUSH = 1 << 9
SECTOR = 512
SECONDS = 300
TOLD = re.compile(r".*(?:I/O error|EXT4-fs|Remounting|JBD2|Read-only).*")


class FailingDisk(vmm.VirtioDevice):
    """A virtio-blk device (virtio 1.2, 5.2) over bytes; ``failed`` are the sectors of errors."""

    device_type = 2
    queue_sizes = (64,)
    features = FEATURE_FLUSH

    def __init__(self, data: bytes, after: int) -> None:
        self.data, self.after = bytearray(data), after
        self.config = struct.pack("<Q", len(data) // SECTOR)
        self.writes, self.failed = 0, []

    def handle(self, queue) -> None:
        """Answer what the driver asks for."""
        for request in queue:
            kind, _, sector = struct.unpack("<IIQ", request.read(16).ljust(16, b"\xff"))
            at, room = sector * SECTOR, max(request.writable - 1, 0)
            status = OK
            if kind == READ and at + room <= len(self.data):
                request.write(bytes(self.data[at : at + room]))
            elif kind == WRITE:
                status = self.write_sectors(at, request.read(request.readable))
            elif kind == IDENTIFY:
                request.write(b"a failing disk".ljust(room, b"\0")[:room])
            elif kind != FLUSH:
                request.write(bytes(room))
                status = UNSUPPORTED
            request.write(status)
            request.done()

    def write_sectors(self, at: int, data: bytes) -> bytes:
        """The status of a write at a byte."""
        self.writes += 1
        if self.writes > self.after or at + len(data) > len(self.data):
            self.failed.append(at // SECTOR)
            return ERROR
        self.data[at : at + len(data)] = data
        return OK


def main(after: str = "4", *files: str) -> int:
    """Boot with that disk in place of the system disk, to the guest's end."""
    keywords = settings(files)
    disk = FailingDisk(Path(keywords.pop("system_image")).read_bytes(), int(after))
    with vmm.Guest(**keywords, devices=[disk]) as guest:
        stop = guest.run(seconds=SECONDS)
        text = guest.serial.text
    for line in TOLD.findall(text):
        print(line.strip())
    print(f"{stop}; {disk.writes} writes, errors for the sectors {disk.failed[:20]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
