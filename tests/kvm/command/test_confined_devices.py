"""Devices of a confined instance: their drivers set them up, use them, reset them; and a reboot."""

from __future__ import annotations

import os

from tests.kvm.test_pci import cf8_write
from tests.support.command import Command
from tests.support.guest_asm import Program
from tests.support.two_vcpus import COMMON_STATUS, activate

CONSOLE, DISK, RNG = 1, 2, 4
QUEUE, HEADER, DATA, STATUS = 0x300000, 0x310000, 0x320000, 0x330000
AVAIL, USED_IDX = 0x1000, 0x2002
DOORBELL, TABLE, MSIX_CONTROL = 0x6000, 0x8000, 0x8000
SPURIOUS, VECTOR = 0xFEE000F0, 0x51
READ, WRITE, FLUSH = 0, 1, 4
NEXT, WRITABLE = 1, 2
COM1 = 0x3F8


def place(program: Program, slot: int) -> int:
    """Where the guest moves the device's BAR to, below 4 GiB."""
    bar = 0xE1000000 + 0x800000 * slot
    cf8_write(program, slot, 0x10, bar)
    cf8_write(program, slot, 0x14, 0)
    return bar


def chain(program: Program, queue: int, *buffers: tuple[int, int, int]) -> None:
    """Descriptors from 0 on: address, length, flags."""
    for index, (address, length, flags) in enumerate(buffers):
        entry = queue + 16 * index
        program.write(entry, address).write(entry + 4, 0).write(entry + 8, length)
        program.write(entry + 12, flags | index + 1 << 16)


def offer(program: Program, bar: int, queue: int, number: int, index: int) -> None:
    """The ``number``-th chain of that queue, and its doorbell; until the device has used it."""
    program.write(queue + AVAIL + 4 + 2 * (number - 1), 0, 2).write(queue + AVAIL + 2, number, 2)
    program.write(bar + DOORBELL + 4 * index, index, 2).wait16(queue + USED_IDX, number)


def request(program: Program, bar: int, number: int, kind: int) -> None:
    program.write(HEADER, kind).write(HEADER + 4, 0).write(HEADER + 8, 8).write(HEADER + 12, 0)
    buffers = [(HEADER, 16, NEXT), (DATA, 4096, NEXT | (WRITABLE if kind == READ else 0))]
    if kind == FLUSH:
        buffers.pop()
    chain(program, QUEUE, *buffers, (STATUS, 1, WRITABLE))
    offer(program, bar, QUEUE, number, 0)


def clear(program: Program, queue: int) -> None:
    program.write(queue + AVAIL, 0).write(queue + AVAIL + 0x1000, 0)


def driver() -> Program:
    program = Program().write(SPURIOUS, 0x1FF)
    disk, console, rng = [place(program, slot) for slot in (DISK, CONSOLE, RNG)]
    for offset, value in ((0, 0xFEE00000), (4, 0), (8, VECTOR), (12, 0)):
        program.write(disk + TABLE + 16 + offset, value)
    program.write(disk + 0x16, 0, 2).write(disk + 0x1A, 1, 2)
    for _ in range(2):
        clear(program, QUEUE)
        activate(program, disk)
        for number, kind in enumerate((READ, WRITE, FLUSH), 1):
            request(program, disk, number, kind)
        program.write(disk + COMMON_STATUS, 0, 1)
    clear(program, QUEUE)
    activate(program, rng)
    chain(program, QUEUE, (DATA, 64, WRITABLE))
    offer(program, rng, QUEUE, 1, 0)
    clear(program, QUEUE + 0x4000)
    activate(program, console, queues=2)
    chain(program, QUEUE + 0x4000, (DATA, 64, 0))
    offer(program, console, QUEUE + 0x4000, 1, 1)
    return program.out_string(COM1, b"up\n")


def test_devices_are_set_up_used_and_reset_over_a_reboot(tmp_path):
    (tmp_path / "console").mkdir()
    program = driver().out(0x64, 0xFE).raw("f4")
    command = Command(
        tmp_path, bytes(program.code), MEMORY_CONFIG="size=16M,shared=on",
        CONSOLE=f"file={tmp_path}/console/file",
    )  # fmt: skip
    process = command.start()
    try:
        assert process.stdout is not None
        text = b""
        while text.count(b"up\n") < 2:
            data = os.read(process.stdout.fileno(), 4096)
            assert data, (text, process.wait())
            text += data
        assert b"cannot use" not in text, text
        assert b"failed" not in text, text
        assert len((tmp_path / "console/file").read_bytes()) >= 64
    finally:
        process.kill()
        process.communicate()
