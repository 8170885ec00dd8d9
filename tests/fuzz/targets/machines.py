"""Whole machines on this host's KVM: their buses, guests of any code, and snapshots' files."""

from __future__ import annotations

import copy
import random
import struct
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from devices import failure
from devices.pci import root as pci_root
from tests.fuzz.target import Dice, Found, PythonTarget, Target
from tests.kvm.test_snapshot_file import made_of, text_of
from tests.support.counting_guest import kernel
from tests.support.elf_builder import LOAD_GPA
from tests.support.tiny_machine import TinyMachine
from vmm._native.kvm.bus import ERROR
from vmm._native.kvm.vcpustate import VcpuState
from vmm._native.kvm.vmstate import msr_index_list, xsave_size
from vmm.debug.guest import Guest
from vmm.errors import VmmError
from vmm.x86 import regs

if TYPE_CHECKING:
    from collections.abc import MutableSequence
    from pathlib import Path

CODE_BYTES = 512
# A guest that does not leave by itself is made to; the first instruction may take some of it.
RUN_NS = 10_000_000
# mov dx, 0x600; mov al, 0x34; out dx, al: the power is off. A halt would be waited for.
THE_END = b"\x66\xba\x00\x06\xb0\x34\xee"
# in and out of 1, 2 and 4 bytes; mov ecx, 3 and rep outsb, rep insd.
PORT_ACCESSES = (
    b"\xec", b"\x66\xed", b"\xed", b"\xee", b"\x66\xef", b"\xef",
    b"\xb9\x03\0\0\0\xf3\x6e", b"\xb9\x03\0\0\0\xf3\x6d",
)  # fmt: skip
# Outcomes are numbers up to this one.
OUTCOME_MAX = 7


class Failures:
    """What devices raise, which a guest never hears of."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, BaseException]] = []
        failure._tell = lambda name, error: self.seen.append((name, error))

    def check(self, index: int) -> None:
        """Found for the first one."""
        if self.seen:
            name, error = self.seen[0]
            raise Found(index, f"{name} raised {error!r}") from error


def broken_read(self: Any, offset: int, size: int) -> int:
    """A device's read() that raises."""
    raise IndexError(offset)


class Accesses(Target):
    """Ports and memory of a whole machine's devices, by one thread or several at once."""

    kvm = True
    plants = ("unchecked",)
    quick = 20_000

    def __init__(self, name: str, threads: int) -> None:
        self.name = name
        self._threads = threads
        self.racing = self.threads = threads > 1

    def run(
        self,
        seed: int,
        first: int,
        count: int,
        seconds: float,
        progress: MutableSequence[int],
        plant: str,
        folder: Path,
    ) -> int:
        """As Target: the machine is made anew after so many, as BARs have gone anywhere."""
        until, done = time.monotonic() + seconds, 0
        failures = Failures()
        if plant:
            pci_root.PciRoot.config_read = broken_read
        while done < count and time.monotonic() < until:
            some = min(count - done, 100_000)
            with TinyMachine(folder, b"\xf4", CPU_COUNT=self._threads) as tiny:
                self._use(tiny, seed, first + done, some, progress)
            done += some
            failures.check(first + done)
        return done

    def _use(self, tiny: TinyMachine, seed: int, first: int, count: int, progress: Any) -> None:
        share = count // self._threads
        raised: list[BaseException] = []

        def work(number: int) -> None:
            try:
                self._access(tiny, seed + number, first, share, progress)
            except BaseException as error:
                raised.append(error)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(self._threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if raised:
            raise raised[0]

    def _access(self, tiny: TinyMachine, seed: int, first: int, count: int, progress: Any) -> None:
        from tests.fuzz.drivers import accesses

        turns = max(1, count // 2000)
        for turn in range(turns):
            bus = (tiny.machine.pio, tiny.machine.mmio)[turn % 2]
            places = [(start, length) for start, length, _ in bus.ranges()]
            at = first + turn * count // turns
            accesses.run(seed, at, max(1, count // turns), progress, bus, places, not turn % 2)


class Guests(PythonTarget):
    """Code of any bytes in a tiny guest, by the real loop of a vCPU."""

    name = "guests"
    kvm = True
    racing = True
    plants = ("unchecked",)
    quick = 150

    def plant(self, fault: str) -> None:
        """A device that raises when it is read."""
        from devices.rtc import Rtc

        Rtc.read = broken_read

    def begin(self, folder: Path) -> None:
        """As PythonTarget."""
        self._failures = Failures()
        self._stack = ExitStack()
        self._tiny = self._stack.enter_context(TinyMachine(folder, b"\xf4"))
        machine = self._tiny.machine
        indices, size = msr_index_list(machine.vm.kvm), xsave_size(machine.vm.fd)
        # Of a halted processor, or one in the middle of a fault, registers alone make none anew.
        self._fresh = VcpuState.capture(machine.vcpus[0].fd, indices, size)
        self._ports = [start for start, _, _ in machine.pio.ranges()]
        self._mmio = [(start, length) for start, length, _ in machine.mmio.ranges()]

    def end(self) -> None:
        """As PythonTarget."""
        self._stack.close()

    def one(self, dice: Dice) -> None:
        """As PythonTarget."""
        machine = self._tiny.machine
        vcpu = machine.vcpus[0]
        code = b"".join(self._instruction(dice) for _ in range(dice.randrange(1, 24)))
        dice.input = code.hex(" ")
        machine.memory.write(LOAD_GPA, (code + THE_END).ljust(CODE_BYTES, b"\xf4")[:CODE_BYTES])
        self._fresh.apply(vcpu.fd)
        vcpu.fd.set_regs({**regs.pvh_regs(LOAD_GPA), **{
            name: dice.integer() & 0xFFFFFFFF for name in ("rax", "rcx", "rsi", "rdi", "rsp")
        }})  # fmt: skip
        outcome = vcpu.loop.run_here(RUN_NS)
        assert 0 < outcome <= OUTCOME_MAX, outcome
        assert outcome != ERROR, vcpu.report(machine.memory)
        vcpu.loop.renew()
        self._failures.check(0)

    def _instruction(self, dice: Dice) -> bytes:
        word = struct.pack("<I", dice.integer() & 0xFFFFFFFF)
        kind = dice.randrange(12)
        if kind < 3:
            port = dice.choice((dice.choice(self._ports), dice.getrandbits(16), 0x70, 0x71))
            head = b"\x66\xba" + struct.pack("<H", port + dice.randrange(4) & 0xFFFF)
            head += b"\xb8" + word
            return head + dice.choice(PORT_ACCESSES)
        if kind < 6:
            start, length = dice.choice(self._mmio)
            gpa = (start + dice.choice((dice.randrange(64), dice.randrange(length)))) & 0xFFFFFFFF
            at = struct.pack("<I", gpa)
            return b"\xb8" + word + dice.choice((b"\xa0", b"\xa1", b"\xa2", b"\xa3")) + at
        if kind == 6:
            return dice.choice((b"\x0f\xa2", b"\xfa", b"\xfb", b"\xfc", b"\x0f\x31", b"\x0f\x09"))
        if kind == 7:
            number = dice.choice((0x10, 0x1B, 0x277, 0x2FF, 0xC0000080, 0x4B564D00, 0x40000000,
                                  dice.integer() & 0xFFFFFFFF))  # fmt: skip
            head = b"\xb9" + struct.pack("<I", number) + b"\xb8" + word
            return head + dice.choice((b"\x0f\x32", b"\x0f\x30"))
        if kind == 8:
            return b"\xb8" + word + dice.choice((b"\x0f\x22\xc0", b"\x0f\x22\xd8", b"\x0f\x22\xe0"))
        if kind == 9:
            return dice.choice((b"\xcd" + word[:1], b"\xeb" + word[:1], b"\xcc", b"\x0f\x0b"))
        return dice.randbytes(dice.randrange(1, 8))


class SnapshotFile(PythonTarget):
    """Snapshots' files, damaged or made up: a guest that runs, or an error with its words."""

    name = "snapshot-file"
    kvm = True
    refusals = (VmmError,)
    plants = ("unchecked",)
    quick = 12
    odd = (None, -1, 0, 1 << 70, 1 << 32, 255, "text", b"bytes", [], {}, [[]], True, "x" * 5000)

    def plant(self, fault: str) -> None:
        """Values are taken as they are."""
        import sys

        for module in list(sys.modules.values()):
            if getattr(module, "read_state", None) is not None:
                module.read_state = lambda device, state, fields: state

    def begin(self, folder: Path) -> None:
        """As PythonTarget."""
        (folder / "disk.img").write_bytes(bytes(1 << 20))
        self._path = folder / "file"
        self._files = 0
        with Guest(kernel=kernel(folder), memory="4M", system_image=folder / "disk.img") as guest:
            guest.snapshot()
            guest.machine.virtio[1].device.disk.overlay.write(0, b"disk")
            guest.snapshot().save(self._path)
        self._data = self._path.read_bytes()

    def one(self, dice: Dice) -> None:
        """As PythonTarget."""
        if dice.chance(3):
            data = dice.mutated(self._data[:8192], 3) + self._data[8192:]
        else:
            values = text_of(self._data)
            for _ in range(dice.randrange(1, 4)):
                self._change(dice, values)
            data = made_of(values, self._data)
        self._path.write_bytes(data)
        with Guest.load(self._path) as guest:
            guest.run(seconds=0.005)

    def _change(self, dice: Dice, values: Any) -> None:
        path = []
        while isinstance(values, (dict, list)) and values:
            key = dice.choice(list(values)) if isinstance(values, dict) else (
                dice.randrange(len(values)))  # fmt: skip
            path.append(key)
            inner = values[key]
            if not isinstance(inner, (dict, list)) or not inner or dice.chance(12):
                if dice.chance(12) and isinstance(values, dict):
                    del values[key]
                else:
                    values[key] = self._other(dice, inner)
                break
            values = inner
        dice.input = (path, dice.input)

    def _other(self, dice: Dice, value: Any) -> Any:
        if type(value) is int and dice.chance(2):
            return value ^ 1 << dice.randrange(64)
        if isinstance(value, bytes) and dice.chance(2):
            return random.Random(dice.integer()).randbytes(len(value))
        # A copy: what the next change puts into a list is in the file alone.
        return copy.deepcopy(dice.choice((*self.odd, dice.integer())))


TARGETS = (
    Accesses("accesses", 1),
    Accesses("accesses-2", 2),
    Accesses("accesses-4", 4),
    Guests(),
    SnapshotFile(),
)
