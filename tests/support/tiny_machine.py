"""A whole machine around a tiny guest, on this machine's KVM."""

from __future__ import annotations

import select
import struct
from pathlib import Path

from devices.vfio.kernel import VfioKernel
from tests.support.elf_builder import LOAD_GPA, build_elf
from tests.support.guest_asm import RESULT_GPA, Program
from tests.support.speed import patience
from vmm.host.console import HostConsole
from vmm.host.disk import open_disks
from vmm.machine import Machine, build_machine
from vmm.run.outcome import Outcome, outcome_of
from vmm.settings.config import PREFIX, Config

SECONDS = 10


class TinyMachine:
    """A built machine; run() starts it and waits for its outcome. A context manager."""

    def __init__(
        self,
        folder: Path,
        code: bytes,
        vfio_kernel: VfioKernel | None = None,
        **settings: object,
    ) -> None:
        kernel = folder / "guest.elf"
        kernel.write_bytes(build_elf(code))
        for name in ("system.img", "config.img"):
            if not (folder / name).exists():
                (folder / name).write_bytes(bytes(1 << 20))
        values = {
            "KERNEL_FILEPATH": kernel,
            "SYSTEM_IMAGE_FILEPATH": folder / "system.img",
            "CONFIG_IMAGE_FILEPATH": folder / "config.img",
            "CPU_COUNT": 1,
            "MEMORY_CONFIG": "size=16M",
            **settings,
        }
        config = Config.from_env({PREFIX + name: str(value) for name, value in values.items()})
        self.config = config
        self.serial_path = folder / "serial"
        self._disks = open_disks(config.system_images, config.config_images)
        shown = "null" if "CONSOLE" not in settings else config.console.kind
        self._console = HostConsole(shown)
        if "SERIAL" in settings:
            self._serial = HostConsole(config.serial.kind)
        else:
            self._serial = HostConsole("file", str(self.serial_path))
        self.consoles = [self._console, self._serial]
        self._serial.start("serial")
        try:
            self.machine: Machine = build_machine(
                config, self._disks, self._console, self._serial, vfio_kernel=vfio_kernel
            )
        except BaseException:
            self._close_host_ends()
            raise

    def load(self, code: bytes) -> None:
        """Another program at the entry, made once the machine's addresses were known."""
        self.machine.memory.write(LOAD_GPA, code)

    def run(self, seconds: float = SECONDS) -> Outcome:
        self.machine.start()
        poll = select.poll()
        poll.register(self.machine.outcome_fd, select.POLLIN)
        if not poll.poll(patience(seconds) * 1000):
            self.machine.stop_vcpus()
            raise AssertionError(self.machine.vcpus[0].report(self.machine.memory))
        return outcome_of(self.machine)

    def results(self, program: Program) -> list[int]:
        data = self.machine.memory.read(RESULT_GPA, 8 * max(program.reads, 1))
        return list(struct.unpack(f"<{len(data) // 8}Q", data))[: program.reads]

    @property
    def serial(self) -> bytes:
        self._serial.port.stop()
        return self.serial_path.read_bytes()

    def close(self) -> None:
        self.machine.close()
        self._close_host_ends()

    def _close_host_ends(self) -> None:
        self._serial.close()
        self._console.close()
        for disk in self._disks:
            disk.close()

    def __enter__(self) -> TinyMachine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def results(folder: Path, program: Program, **settings: object) -> list[int]:
    """Run the program to its power-off; what it read."""
    with TinyMachine(folder, program.power_off(), **settings) as tiny:
        outcome = tiny.run()
        assert outcome.kind == "shutdown", outcome.report
        return tiny.results(program)
