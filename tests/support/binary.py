"""The command under test: VLLMD_TEST_COMMAND, else the one installed; and the static executable."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from elftools.elf.elffile import ELFFile

ROOT = Path(__file__).resolve().parents[2]
BINARY = ROOT / "dist/vllmd-hypervisor"


def command() -> str:
    """Path of the command that every suite runs."""
    installed = Path(sys.executable).with_name("vllmd-hypervisor")
    return os.environ.get("VLLMD_TEST_COMMAND") or str(installed)


def difference(one: Path, other: Path) -> str:
    """Where two executables begin to differ; "" for the same bytes. Never the bytes themselves."""
    first, second = one.read_bytes(), other.read_bytes()
    if hashlib.sha256(first).digest() == hashlib.sha256(second).digest():
        return ""
    pairs = enumerate(zip(first, second, strict=False))
    at = next((offset for offset, (a, b) in pairs if a != b), min(len(first), len(second)))
    with open(one, "rb") as file:
        inside = [
            f"{section.name} + {at - section['sh_offset']:#x} "
            f"(address {section['sh_addr'] + at - section['sh_offset']:#x})"
            for section in ELFFile(file).iter_sections()
            if section["sh_type"] != "SHT_NOBITS"
            and section["sh_offset"] <= at < section["sh_offset"] + section["sh_size"]
        ]
    return (
        f"{len(first)} and {len(second)} bytes; the first that differs is at {at:#x}, in "
        f"{inside[0] if inside else 'no section'}"
    )
