"""Who answers what a debugger asks, each ready for a batch: (what) -> microseconds of one."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import vmm
from benchmarks import peers
from benchmarks.bench_start import ContenderError, end_of
from benchmarks.build import compiled
from benchmarks.gdbclient import GdbClient, GdbError
from tests.support.elf_builder import LOAD_GPA, build_elf
from vmm.debug.abilities import ABILITIES
from vmm.debug.guest import Guest

# inc eax; jmp to it
LOOP = bytes.fromhex("40 ebfd")
# out 0x10, al; jmp to it
PORT_LOOP = bytes.fromhex("e610 ebfc")
PORT = 0x10
RAM = "32M"
RAM_MIB = 32
C_SECONDS = 60


class Api:
    """A guest that the script holds itself."""

    def __init__(self, folder: Path) -> None:
        self._guest = Guest(kernel=elf(folder, "loop", LOOP), memory=RAM)
        self._port_guest = Guest(kernel=elf(folder, "port", PORT_LOOP), memory=RAM)

    def batch(self, what: str, count: int) -> float:
        """Microseconds of one."""
        return float(getattr(self, f"_{what}")(count))

    def _break(self, count: int) -> float:
        point = self._guest.breakpoint(LOAD_GPA, counted(count))
        try:
            return timed(self._guest.run, count)
        finally:
            point.remove()

    def _step(self, count: int) -> float:
        return timed(lambda: [self._guest.step() for _ in range(count)], count)

    def _port(self, count: int) -> float:
        hook = self._port_guest.on_port(PORT, write=counted(count))
        try:
            return timed(self._port_guest.run, count)
        finally:
            hook.remove()

    def _registers(self, count: int) -> float:
        regs = self._guest.cpus[0].regs

        def read() -> None:
            for _ in range(count):
                regs.forget()
                _ = regs.rax

        return timed(read, count)

    def close(self) -> None:
        """End both guests."""
        self._guest.close()
        self._port_guest.close()


class Program:
    """debug.c, anew for each batch."""

    def __init__(self, folder: Path) -> None:
        self._program = compiled("debug.c", folder)

    def batch(self, what: str, count: int) -> float:
        """Microseconds of one."""
        if what == "break" and not ABILITIES.hardware:
            raise ContenderError("this host's KVM has no hardware breakpoints")
        try:
            out = subprocess.run(
                [self._program, what, str(count)], capture_output=True, text=True,
                timeout=C_SECONDS,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ContenderError(f"{what} does not end within {C_SECONDS} s") from None
        if out.returncode:
            raise ContenderError(f"debug.c {what}: {out.stderr.strip() or out.returncode}")
        return float(out.stdout)

    def close(self) -> None:
        """Nothing runs."""


class Stub:
    """A gdb stub of another process, by its socket."""

    def __init__(self, command: list[str], socket: Path) -> None:
        self._words = tempfile.TemporaryFile()
        self._client: GdbClient | None = None
        null = subprocess.DEVNULL
        try:
            self._process = subprocess.Popen(command, stdin=null, stdout=null, stderr=self._words)
        except OSError as error:
            self._words.close()
            raise ContenderError(f"{command[0]}: {error.strerror}") from error
        try:
            self._client = GdbClient(socket, lambda: self._process.poll() is None)
            self._client.come_to(LOAD_GPA)
        except (GdbError, OSError) as error:
            reason = self._reason(error)
            self.close()
            raise ContenderError(reason) from error

    def batch(self, what: str, count: int) -> float:
        """Microseconds of one."""
        client = self._client
        assert client is not None
        one: dict[str, Callable[[], None]] = {
            "break": lambda: client.hit(LOAD_GPA), "step": client.step,
            "registers": client.registers,
        }  # fmt: skip
        try:
            if what != "step":
                # Away from where the steps have left it.
                client.come_to(LOAD_GPA)
            return timed(lambda: [one[what]() for _ in range(count)], count)
        except (GdbError, OSError) as error:
            raise ContenderError(self._reason(error)) from error

    def _reason(self, error: Exception) -> str:
        """How the process ended, and its last words, if it did."""
        if self._process.poll() is None:
            return str(error)
        self._words.seek(0)
        lines = self._words.read().decode(errors="replace").strip().splitlines()
        return ": ".join([end_of(self._process), *lines[-1:]])

    def close(self) -> None:
        """Hang up, and end it."""
        if self._client is not None:
            self._client.close()
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._words.close()


def elf(folder: Path, name: str, code: bytes) -> Path:
    """A guest as a file."""
    path = folder / f"{name}.elf"
    path.write_bytes(build_elf(code))
    return path


def our_stub(folder: Path) -> Stub:
    """``guest.gdb()`` in a process of its own."""
    socket = folder / "ours.gdb"
    kernel = elf(folder, "loop", LOOP)
    return Stub([sys.executable, "-m", "benchmarks.ourstub", str(kernel), str(socket)], socket)


def qemu_stub(folder: Path) -> Stub:
    """QEMU's, which waits with the guest's first instruction as ours does."""
    socket = folder / "qemu.gdb"
    found = peers.qemu(elf(folder, "loop", LOOP), RAM_MIB, 1)
    more = ["-S", "-chardev", f"socket,id=gdb,path={socket},server=on,wait=off"]
    return Stub([*found.command, *more, "-gdb", "chardev:gdb"], socket)


def counted(count: int) -> Callable[..., Any]:
    """As good as an empty action: it only ends the run after so many calls."""
    left = count

    def action(*_: object) -> Any:
        nonlocal left
        left -= 1
        return vmm.STOP if left == 0 else None

    return action


def timed(function: Callable[[], object], count: int) -> float:
    """Microseconds of one of ``count``."""
    started = time.perf_counter()
    function()
    return (time.perf_counter() - started) / count * 1e6
