"""The examples that need no operating system in the guest."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kvm.test_python_virtio import DATA, Rig
from tests.support.elf_builder import build_elf
from tests.support.guest_asm import RESULT_GPA, Program
from tests.support.multiboot_elf import multiboot_elf
from tests.support.speed import patience
from tests.support.two_vcpus import activate

ROOT = Path(__file__).resolve().parents[2]


def run_example(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, f"examples/{name}.py", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=patience(60), check=False,
    )  # fmt: skip


@pytest.mark.parametrize("value", [0, 5])
def test_a_test_kernel_ends_by_the_exit_port(tmp_path, value):
    program = Program().out(0xF4, value).raw("ebfe")
    kernel = tmp_path / "test.flat"
    kernel.write_bytes(multiboot_elf(bytes(program.code)))
    done = run_example("exit_device", kernel, "words")
    assert done.returncode == value << 1 | 1, done.stderr
    hook = "<port hook at 0xf4..0xf7, 1 hits>"
    assert f"hook: cpu 0 at 0x100010: {hook}; status {value * 2 + 1}" in done.stdout


def test_the_test_devices_answer_as_qemu_s(tmp_path):
    import vmm
    from examples.exit_device import PAGES, TestDevices

    program = Program().out(0xE0, 0x12345678, 4).out(0xE1, 0xAB)
    echo, word = program.read_port(0xE0, 4), program.read_port(0xEA, 2)
    program.write(PAGES + 0x123, 0xCAFEF00D).out(0xE4, 0x1000, 4).out(0x2000 + 20, 1)
    page = program.read(PAGES + 0x123)
    program.out(0xF4, 0x31, 4).raw("ebfe")
    kernel = tmp_path / "guest.elf"
    kernel.write_bytes(build_elf(bytes(program.code)))
    with vmm.Guest(kernel=kernel, memory="16M") as guest:
        devices = TestDevices(guest)
        assert guest.run(seconds=patience(20)).kind == "hook"
        assert devices.status == 0x63
        data = guest.memory.read(RESULT_GPA, 24)
        found = [int.from_bytes(data[8 * n : 8 * n + 8], "little") for n in (echo, word, page)]
        assert found == [0x1234AB78, 0x1234, 0xCAFEF00D]


def test_the_disk_reads_what_its_function_says(tmp_path):
    from examples.virtio_in_30_lines import FunctionDisk, content

    with Rig(tmp_path, type("Low", (FunctionDisk,), {"low_bar": True})()) as rig:
        rig.memory.write(DATA, struct.pack("<IIQ", 0, 0, 3))
        rig.memory.write(DATA + 0x20, struct.pack("<IIQ", 1, 0, 3))
        rig.ring.add([(DATA, 16, False), (DATA + 0x1000, 1024, True), (DATA + 0x2000, 1, True)])
        rig.ring.add(
            [(DATA + 0x20, 16, False), (DATA + 0x1000, 512, False), (DATA + 0x2001, 1, True)]
        )
        assert rig.kick().run().kind == "ended"
        assert [rig.ring.take_used() for _ in range(2)] == [(0, 1025), (3, 1)]
        assert rig.memory.read(DATA + 0x1000, 1024) == content(3) + content(4)
        assert rig.memory.read(DATA + 0x2000, 2) == b"\0\2"


def test_the_generator_counts(tmp_path):
    from examples.virtio_rng import CountingRng

    with Rig(tmp_path, type("Low", (CountingRng,), {"low_bar": True})()) as rig:
        rig.program = activate(Program(), rig.bar)
        for place in (0, 64):
            rig.ring.add([(DATA + place, 64, True)])
        assert rig.kick().run().kind == "ended"
        assert struct.unpack("<16Q", rig.memory.read(DATA, 128)) == tuple(range(16))
