"""The examples that need no operating system in the guest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.elf_builder import build_elf
from tests.support.guest_asm import RESULT_GPA, Program
from tests.support.multiboot_elf import multiboot_elf
from tests.support.speed import patience

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
