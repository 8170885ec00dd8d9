"""Kernel files of each format, and the plans that are kept of them."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from tests.fuzz.target import Dice, MemoryFile, PythonTarget
from tests.support.elf_builder import LOAD_GPA, aligned_note, build_elf, other_note
from tests.support.multiboot_elf import multiboot_elf
from tests.support.tiny_bzimage import build_bzimage
from vmm._native.memory.guestmem import GuestMemory
from vmm.boot import image, kernel, plancache
from vmm.errors import GuestError

if TYPE_CHECKING:
    from pathlib import Path

RAM = 32 << 20
SHOWN = 512


class KernelFile(PythonTarget):
    """A file that check_payload() lets through is loaded as it says; all else is a GuestError."""

    refusals = (GuestError,)
    plants = ("unchecked",)
    quick = 600

    def __init__(self, name: str, bases: list[bytes], start: int, end: int) -> None:
        """``start`` and ``end`` of the bytes that say what the file is."""
        self.name = name
        self._bases = bases
        self._start, self._end = start, end

    def begin(self, folder: Path) -> None:
        """As PythonTarget."""
        self._file = MemoryFile()
        self._path = self._file.path
        self._initramfs = str(folder / "initramfs")
        (folder / "initramfs").write_bytes(bytes(5000))
        self._memory = GuestMemory([(0, RAM)])

    def end(self) -> None:
        """As PythonTarget."""
        self._memory.close()
        self._file.close()

    def plant(self, fault: str) -> None:
        """Nobody asks whether what is loaded is in the file, and fits."""
        kernel.check_plan = lambda *rest: None
        image.check_fits = kernel.check_fits = lambda *rest: None

    def one(self, dice: Dice) -> None:
        """As PythonTarget."""
        base = dice.choice(self._bases)
        start, end = self._start, self._end
        if dice.chance(8):
            start, end = 0, 0x1000
        data = base[:start] + dice.mutated(base[start:end], 3) + base[end:]
        if dice.chance(20):
            data = data[: dice.randrange(len(data) + 1)]
        self._file.put(data)
        plancache._kept.clear()  # two files within a moment look the same by their times
        initramfs = self._initramfs if dice.chance(2) else None
        fd, plan = kernel.open_plan(self._path, None)
        try:
            kernel.check_payload(plan, self._path, "quiet", initramfs, RAM)
            self._load(plan, fd, initramfs)
        finally:
            os.close(fd)
        for segment in plan.segments:
            size = min(segment.file_size, SHOWN)
            if initramfs is None and size:
                assert self._memory.read(segment.gpa, size) == data[segment.offset :][:size]
        assert plan.start <= plan.entry < plan.end

    def _load(self, plan: image.LoadPlan, fd: int, initramfs: str | None) -> None:
        try:
            kernel.load_guest(plan, fd, self._path, self._memory, initramfs, "quiet")
        except GuestError as error:
            raise AssertionError(f"refused when it was loaded: {error}") from error


class PlanCache(PythonTarget):
    """Entries of any bytes: none at all, or one that says just what its bytes say."""

    name = "plan-cache"
    refusals = (GuestError,)
    plants = ("unchecked",)
    quick = 5_000

    def plant(self, fault: str) -> None:
        """Nobody asks whether all is there."""

        def decode(data: bytes) -> image.LoadPlan:
            _, kind, entry, count, size = plancache.HEAD.unpack_from(data)
            segments = tuple(
                image.Segment(*plancache.SEGMENT.unpack_from(data, plancache.HEAD.size + 32 * n))
                for n in range(count)
            )
            return image.LoadPlan(plancache.KINDS[kind], entry, segments, data[len(data) - size :])

        plancache.decode = decode

    def one(self, dice: Dice) -> None:
        """As PythonTarget."""
        segments = tuple(
            image.Segment(0, 64, LOAD_GPA + 4096 * n, 128) for n in range(dice.randrange(4))
        )
        header = bytes(dice.randrange(100))
        plan = image.LoadPlan(dice.choice(plancache.KINDS), LOAD_GPA, segments, header)
        data = dice.mutated(plancache.encode(plan))
        found = plancache.decode(data)
        if found is not None:
            assert plancache.encode(found) == data
            image.check_plan(found, "kernel", 4096)


def _elves() -> list[bytes]:
    code = b"\xf4" * 64
    notes = other_note(20, 8) + aligned_note(LOAD_GPA, 8)
    return [
        build_elf(code),
        build_elf(code, bits=32),
        build_elf(code, bss=4096, loads=((0x400000, 0x1000), (0x500000, 0x1000))),
        build_elf(code, notes_at_end=notes, note_align=8),
    ]


def _multiboots() -> list[bytes]:
    code = b"\xf4" * 64
    # With addresses in the header (bit 16), which stand for those of the ELF.
    placed = struct.pack("<8I", 0x1BADB002, 0x10003, 0xE4514FFB, 0, 0, 0, 0, 0)
    return [multiboot_elf(code), multiboot_elf(code, placed)]


def _bzimages() -> list[bytes]:
    return [build_bzimage(), build_bzimage(changes={0x206: b"\x0f\x02"})]


TARGETS = (
    KernelFile("elf", _elves(), 0x10, 0xE8),
    KernelFile("bzimage", _bzimages(), 0x1F0, 0x268),
    KernelFile("multiboot", _multiboots(), 0x10, 0x80),
    PlanCache(),
)
