"""What the examples have in common: which guest they run, and how an address is shown."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import vmm

ROOT = Path(__file__).resolve().parents[1]
# What the guest of `make demo` says when it is up.
GREETING = "Hello from the guest"
LOAD_GPA = 0x100000
XEN_ENTRY = 18
FILES = ("kernel", "initramfs", "system_image", "config_image")


def settings(files: tuple[str, ...] | list[str], **more: Any) -> dict[str, Any]:
    """Keywords of vmm.Guest: KERNEL [INITRAMFS [SYSTEM_IMAGE [CONFIG_IMAGE]]] of a command line,
    else those of `make demo`'s guest.
    """
    found: dict[str, Any] = {"cmdline": "console=ttyS0 panic=-1"}
    if files:
        found.update(zip(FILES, files, strict=False))
    else:
        if str(ROOT) not in sys.path:
            sys.path.insert(0, str(ROOT))
        from tests.lab.guests.default_guest import DefaultGuest

        guest = DefaultGuest()
        found.update(kernel=guest.kernel.image, initramfs=guest.initramfs)
        found.update(system_image=guest.system, config_image=guest.config)
    return {**found, **more}


def place(guest: vmm.Guest, address: int) -> str:
    """An address by its symbol where there are any."""
    try:
        return guest.symbols.at(address) or f"{address:#x}"
    except vmm.VmmError:
        return f"{address:#x}"


def tiny(path: str | Path, code: bytes) -> Path:
    """The smallest kernel there is: machine code (32 bits) in an ELF file, started at its begin.

    The note behind the headers is what a Xen PVH kernel has; VMMs start it without a boot loader.
    """
    note = struct.pack("<III4sI", 4, 4, XEN_ENTRY, b"Xen\0", LOAD_GPA)
    ident = b"\x7fELF\x01\x01\x01" + bytes(9)
    head = ident + struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, LOAD_GPA, 52, 0, 0, 52, 32, 2, 0, 0, 0)
    head += struct.pack("<8I", 1, 4096, LOAD_GPA, LOAD_GPA, len(code), len(code), 7, 4096)
    head += struct.pack("<8I", 4, 116, 0, 0, len(note), len(note), 4, 4)
    Path(path).write_bytes((head + note).ljust(4096, b"\0") + code)
    return Path(path)
