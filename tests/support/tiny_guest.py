"""A vmm.Guest around a tiny program."""

from __future__ import annotations

from pathlib import Path

from tests.support.elf_builder import build_elf
from vmm.debug.guest import Guest


def tiny_guest(folder: Path, code: bytes, **settings: object) -> Guest:
    kernel = folder / "guest.elf"
    kernel.write_bytes(build_elf(code))
    return Guest(kernel=kernel, **{"memory": "16M", **settings})
