"""What firmwares do to a machine before a kernel runs, each in a tiny guest.

hypervisor-fw uses devices where it finds them, polling, one sector at a time. EDK2 assigns all BARs
anew, waits by the PM timer and counts processors by a broadcast.
"""

from __future__ import annotations

import struct

import pytest

from tests.kvm.test_pci import CONSOLE, DISK, LOW_A, cf8_write, move
from tests.support.guest_asm import Program
from tests.support.tiny_machine import TinyMachine
from tests.support.virtq_driver import DriverQueue
from vmm.layout import PM_TIMER_PORT

RINGS, HEADER, DATA, STATUS = 0x300000, 0x310000, 0x320000, 0x330000
QUEUE_SIZE = 16
SECTOR = 512
HALT = b"\xf4"
LAPIC_SVR, LAPIC_IRR, LAPIC_ICR = 0xFEE000F0, 0xFEE00200, 0xFEE00300
VECTOR = 0x40
MSIX_ID = 0x11
INIT_ALL_BUT_SELF = 0x000C4500
STARTUP_ALL_BUT_SELF = 0x000C4600
AP_CODE = 0x9000
AP_COUNT = AP_CODE + 0x800
# cs lock inc word [0x800]; cli; hlt; jmp back to hlt
COUNT_ME = bytes.fromhex("2ef0ff060008 fa f4 ebfd")


def start_disk(program: Program, bar: int, queue: DriverQueue, vector: int = 0xFFFF) -> None:
    """Reset to DRIVER_OK as hypervisor-fw goes: VERSION_1 only, queue 0, halves of addresses."""
    for status in (0, 1, 3):
        program.write(bar + 0x14, status, 1)
    program.write(bar + 0x08, 1).write(bar + 0x0C, 1)
    program.write(bar + 0x14, 0x0B, 1)
    program.write(bar + 0x16, 0, 2).write(bar + 0x18, QUEUE_SIZE, 2)
    for offset, gpa in zip((0x20, 0x28, 0x30), queue.areas(), strict=True):
        program.write(bar + offset, gpa).write(bar + offset + 4, 0)
    program.write(bar + 0x1A, vector, 2)
    program.write(bar + 0x1C, 1, 2).write(bar + 0x14, 0x0F, 1)


def read_sector(tiny: TinyMachine, queue: DriverQueue, sector: int, number: int) -> None:
    """Request ``number``: three descriptors, 512 bytes; made available in advance."""
    memory = tiny.machine.memory
    header, data = HEADER + 16 * number, DATA + SECTOR * number
    memory.write(header, struct.pack("<IIQ", 0, 0, sector))
    queue.add([(header, 16, False), (data, SECTOR, True), (STATUS + number, 1, True)])


def bar_of(tiny: TinyMachine, slot: int) -> int:
    return tiny.machine.virtio[slot - 1].bar.value


def disk_content(folder) -> bytes:
    content = b"".join(struct.pack("<I", n) * (SECTOR // 4) for n in range(64))
    (folder / "system.img").write_bytes(content)
    return content


@pytest.mark.parametrize("notify_bytes", [2, 4])
@pytest.mark.parametrize("moved", [False, True])
def test_a_disk_polled_where_it_is_or_where_it_was_moved(tmp_path, notify_bytes, moved):
    """The notification reaches the queue without an exit, at whichever address the BAR has."""
    content = disk_content(tmp_path)
    program = Program()
    with TinyMachine(tmp_path, HALT) as tiny:
        home = bar = bar_of(tiny, DISK)
        queue = DriverQueue(tiny.machine.memory, RINGS, QUEUE_SIZE)
        start_disk(program, home, queue)
        if moved:
            # As EDK2 does: decoding off, program, decoding on. The device keeps its state.
            bar = LOW_A
            cf8_write(program, DISK, 4, 0, 2)
            move(program, DISK, bar)
            cf8_write(program, DISK, 4, 2, 2)
        read_sector(tiny, queue, 5, 0)
        program.write(bar + 0x6000, 0, notify_bytes).wait16(queue.device_gpa + 2, 1)
        program.write(bar + 0x14, 0, 1)
        tiny.load(program.power_off())
        assert tiny.run().kind == "shutdown"
        assert tiny.machine.memory.read(DATA, SECTOR) == content[5 * SECTOR : 6 * SECTOR]
        assert tiny.machine.memory.read(STATUS, 1) == b"\0"
        doorbells = [e for e in tiny.machine.vcpus[0].loop.last_exits() if e[1] == bar + 0x6000]
        assert not doorbells


def test_messages_follow_a_moved_bar(tmp_path):
    """The MSI-X table answers at the BAR's new place, and its vector interrupts."""
    disk_content(tmp_path)
    program = Program()
    with TinyMachine(tmp_path, HALT) as tiny:
        queue = DriverQueue(tiny.machine.memory, RINGS, QUEUE_SIZE)
        program.write(LAPIC_SVR, 0x1FF)
        cf8_write(program, DISK, 4, 0, 2)
        move(program, DISK, LOW_A)
        cf8_write(program, DISK, 4, 6, 2)
        table = LOW_A + 0x8000
        for offset, value in ((0, 0xFEE00000), (4, 0), (8, VECTOR), (12, 0)):
            program.write(table + offset, value)
        msix = tiny.machine.virtio[DISK - 1].config.get(0x34, 1)
        while tiny.machine.virtio[DISK - 1].config.get(msix, 1) != MSIX_ID:
            msix = tiny.machine.virtio[DISK - 1].config.get(msix + 1, 1)
        cf8_write(program, DISK, msix + 2, 0x8000, 2)
        start_disk(program, LOW_A, queue, vector=0)
        read_sector(tiny, queue, 5, 0)
        program.write(LOW_A + 0x6000, 0).wait16(LAPIC_IRR + VECTOR // 32 * 16, 1)
        tiny.load(program.power_off())
        assert tiny.run().kind == "shutdown"


def test_a_disk_reset_and_used_again(tmp_path):
    """Firmware uses it, leaves it, the kernel starts over: rings anew, at other places."""
    content = disk_content(tmp_path)
    program = Program()
    with TinyMachine(tmp_path, HALT) as tiny:
        bar = bar_of(tiny, DISK)
        for number in range(3):
            queue = DriverQueue(tiny.machine.memory, RINGS + 0x1000 * number, QUEUE_SIZE)
            start_disk(program, bar, queue)
            read_sector(tiny, queue, 7 + number, number)
            program.write(bar + 0x6000, 0).wait16(queue.device_gpa + 2, 1)
        tiny.load(program.power_off())
        assert tiny.run().kind == "shutdown"
        found = tiny.machine.memory.read(DATA, 3 * SECTOR)
    assert found == content[7 * SECTOR : 10 * SECTOR]


def test_all_bars_assigned_anew(tmp_path):
    """Every BAR, narrow and wide, off first, then bottom-up: all answer at their new places."""
    program = Program()
    slots = (CONSOLE, DISK, DISK + 1, DISK + 2)
    for slot in slots:
        cf8_write(program, slot, 4, 0, 2)
    for number, slot in enumerate(slots):
        for register in (0x10, 0x14):
            cf8_write(program, slot, register, 0xFFFFFFFF)
        cf8_write(program, slot, 0x14, 0)
        cf8_write(program, slot, 0x10, LOW_A + 0x80000 * number)
        # EDK2 writes the upper half of a wide BAR last.
        cf8_write(program, slot, 0x14, 0)
    for slot in slots:
        cf8_write(program, slot, 4, 6, 2)
    queues = [program.read(LOW_A + 0x80000 * n + 0x12, 2) for n in range(len(slots))]
    with TinyMachine(tmp_path, program.power_off()) as tiny:
        assert tiny.run().kind == "shutdown"
        found = tiny.results(program)
    assert [found[q] for q in queues] == [2, 1, 1, 1]


def test_a_delay_by_the_pm_timer(tmp_path):
    program = Program().wait_ticks(PM_TIMER_PORT, 3580)
    with TinyMachine(tmp_path, program.power_off()) as tiny:
        assert tiny.run().kind == "shutdown"


@pytest.mark.parametrize("count", [2, 4])
def test_processors_counted_by_a_broadcast(tmp_path, count):
    program = Program().write(LAPIC_ICR, INIT_ALL_BUT_SELF)
    program.wait_ticks(PM_TIMER_PORT, 3580)
    program.write(LAPIC_ICR, STARTUP_ALL_BUT_SELF | AP_CODE >> 12)
    program.wait16(AP_COUNT, count - 1)
    with TinyMachine(tmp_path, program.power_off(), CPU_COUNT=count) as tiny:
        tiny.machine.memory.write(AP_CODE, COUNT_ME)
        assert tiny.run().kind == "shutdown"


def test_cmos_as_firmware_reads_it(tmp_path):
    """All registers are read; 0x0f is cleared through its plain index, which resets nothing."""
    program = Program()
    for register in range(128):
        program.out(0x70, register)
        program.read_port(0x71)
    program.out(0x70, 0x0F).out(0x71, 0)
    with TinyMachine(tmp_path, program.power_off()) as tiny:
        assert tiny.run().kind == "shutdown"
        found = tiny.results(program)
    assert found[0x0F] == 0
    assert found[0x0D] == 0x80


def test_a_write_to_0xcf9_resets_nothing(tmp_path):
    program = Program().out(0xCF9, 6)
    with TinyMachine(tmp_path, program.power_off()) as tiny:
        assert tiny.run().kind == "shutdown"
