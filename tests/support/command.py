"""The command as users meet it, on tiny guests: an environment in a folder of its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.support.binary import command
from tests.support.elf_builder import build_elf
from tests.support.guest_asm import Program
from tests.support.speed import patience

COMMAND = command()
PREFIX = "VLLMD_HYPERVISOR_"
HELLO = Program().out_string(0x3F8, b"hello\n").power_off()
HALT = bytes(Program().out_string(0x3F8, b"up\n").raw("f4 ebfd").code)
FAULT = bytes(Program().write(0x1000, 0).write(0x1004, 0).raw("0f011d00100000 0f0b").code)
RESET = bytes(Program().out(0x64, 0xFE).raw("f4").code)
PANIC = bytes(Program().out(0x505, 2).out_string(0x3F8, b"up\n").out(0x505, 1).raw("f4").code)
CRASH = bytes(Program().raw("d935000000d0 f4").code)


class Command:
    """The environment of one instance in a folder of its own."""

    def __init__(self, folder: Path, code: bytes = HELLO, **settings: object) -> None:
        self.folder = folder
        (folder / "guest.elf").write_bytes(build_elf(code))
        for name in ("system.img", "config.img"):
            (folder / name).write_bytes(bytes(1 << 20))
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder),
        }
        self.set(
            KERNEL_FILEPATH=folder / "guest.elf", SYSTEM_IMAGE_FILEPATH=folder / "system.img",
            CONFIG_IMAGE_FILEPATH=folder / "config.img", CPU_COUNT=1, MEMORY_CONFIG="size=16M",
            SERIAL="tty", CONSOLE="null", NAME="vm",
        )  # fmt: skip
        self.set(**settings)

    def set(self, **settings: object) -> Command:
        for name, value in settings.items():
            self.env[PREFIX + name] = str(value)
        return self

    def run(
        self, *arguments: str, seconds: float = 30, under: tuple[str, ...] = ()
    ) -> tuple[int, str]:
        """(exit code, stdout and stderr). ``under``: a command that runs it, such as a shell."""
        done = subprocess.run(
            [*under, COMMAND, *arguments], env=self.env, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=patience(seconds),
            check=False,
        )  # fmt: skip
        return done.returncode, done.stdout.decode(errors="replace")

    def start(self, **options: object) -> subprocess.Popen[bytes]:
        """In the background, its guest running."""
        process = subprocess.Popen(
            [COMMAND, "start"], env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, **options,
        )  # fmt: skip
        assert process.stdout is not None
        text = b""
        while b"up\n" not in text:
            data = os.read(process.stdout.fileno(), 4096)
            assert data, text
            text += data
        return process


def finish(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    text = process.communicate(timeout=patience(20))[0].decode(errors="replace")
    return process.returncode, text
