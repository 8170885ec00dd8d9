"""A passed-through device that lies, and our AML before another interpreter: Intel's own."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

from devices.pci import root as pci_root
from devices.pci.root import PciRoot
from devices.vfio.passthrough import PassthroughFunction
from tests.fuzz.target import Dice, PythonTarget
from tests.unit.devices.vfio.test_passthrough import HOST, MSI, MSIX, PCIE, FakeDevice
from tests.unit.devices.vfio.test_races import Peers, Shifted, StrictKvm
from vmm._native.kvm.bus import Bus
from vmm._native.vfio import ioctls as vfio
from vmm.acpi import aml
from vmm.acpi.spec import AcpiSpec
from vmm.acpi.tables import build_acpi, table
from vmm.errors import HostError
from vmm.irq import IrqRouter
from vmm.vm import DeviceSlots

if TYPE_CHECKING:
    from pathlib import Path

WINDOW = (0xE0000000, 0x1000000)
REGISTERS = (0, 4, 6, 0xC, 0xE, 0x10, 0x14, 0x18, 0x24, 0x30, 0x34, 0x3C, MSIX, MSIX + 2, MSI,
             MSI + 2, MSI + 4, MSI + 8, MSI + 12, PCIE, 0x100, 0x140, 0xFFC)  # fmt: skip


class HostileDevice(FakeDevice):
    """Answers what it likes, and fails when it likes; its regions have any size."""

    def __init__(self, dice: Dice) -> None:
        super().__init__()
        self._dice = dice
        self._liar = dice.choice((0, 0, 12, 60))
        self.config = bytearray(4096)
        base = FakeDevice().config
        self.config[: len(base)] = base
        for _ in range(dice.randrange(12)):
            at = dice.choice((dice.randrange(0x40), dice.randrange(0x100), dice.randrange(4096)))
            self.config[at] = dice.getrandbits(8)

    def _lies(self) -> bool:
        return bool(self._liar) and self._dice.chance(self._liar)

    def get_region_info(self, index: int) -> Any:
        """As VfioDevice."""
        flags, size, offset, areas, mapped = super().get_region_info(index)
        if index != vfio.CONFIG_REGION and self._dice.chance(4):
            size = self._dice.choice((0, 1, 16, 256, 4096, 1 << 20, 1 << 36, 3000, 1 << 63))
        return flags, size, offset, areas, mapped

    def get_irq_count(self, index: int) -> int:
        """As VfioDevice."""
        return self._dice.randrange(5000) if self._lies() else super().get_irq_count(index)

    def read(self, offset: int, size: int) -> int:
        """As VfioDevice."""
        if self._lies():
            if self._dice.chance(3):
                raise OSError(5, "gone for a moment")
            return self._dice.choice((0, (1 << 8 * size) - 1, self._dice.getrandbits(8 * size)))
        return super().read(offset, size)

    def write(self, offset: int, value: int, size: int) -> None:
        """As VfioDevice."""
        if self._lies():
            raise OSError(5, "gone for a moment")
        super().write(offset, value, size)

    def trigger_eventfds(self, index: int, fds: list[int]) -> int:
        """As VfioDevice."""
        if self._lies():
            if self._dice.chance(2):
                raise OSError(22, "no vectors")
            self.vectors = self._dice.randrange(len(fds) + 1)
        return super().trigger_eventfds(index, fds)

    def disable_irqs(self, index: int) -> None:
        """As VfioDevice."""
        if self._lies():
            raise OSError(5, "gone for a moment")


class Passthrough(PythonTarget):
    """A guest's accesses to such a device: no handler raises, and all is given back in the end."""

    name = "passthrough"
    # The device is refused, with words.
    refusals = (HostError,)
    plants = ("unchecked",)
    quick = 100

    def plant(self, fault: str) -> None:
        """A device that fails is not expected."""

        def get(self: PassthroughFunction, offset: int, size: int) -> int:
            return int(self.device.read(self._base + offset, size))

        PassthroughFunction.config_read = get

    def begin(self, folder: Path) -> None:
        """As PythonTarget."""
        self._raised: list[BaseException] = []
        tell = self._tell
        pci_root.tell_failure = lambda device, error, name="": tell(device, name, error)

    def _tell(self, device: object, name: str, error: BaseException) -> None:
        self._raised.append(error)

    def one(self, dice: Dice) -> None:
        """As PythonTarget."""
        before = len(os.listdir("/proc/self/fd"))
        device, kvm = HostileDevice(dice), StrictKvm()
        irq = IrqRouter(kvm)
        self._raised.clear()
        try:
            self._drive(dice, device, kvm, irq)
        finally:
            irq.close()
        after = len(os.listdir("/proc/self/fd"))
        assert after == before, f"{after - before} descriptors left behind"
        if self._raised:
            raise AssertionError("a handler raised") from self._raised[0]

    def _drive(self, dice: Dice, device: Any, kvm: Any, irq: Any) -> None:
        mmio, pio = Bus("MMIO", self._tell), Bus("ports", self._tell)
        root = PciRoot(mmio, [WINDOW], pio, (0xC000, 0x1000))
        clique = dice.choice((None, 5))
        try:
            function = PassthroughFunction(
                HOST, device, irq, 7, DeviceSlots(kvm, 2), Peers(), clique
            )  # fmt: skip
        except OSError:
            return  # which whoever attaches devices makes an error with words
        try:
            root.add(1, function)
            function.enable()
        except OSError:
            function.close()
            return
        function.bar_target = lambda bar: Shifted(function)  # the native one wants a real file
        try:
            for _ in range(40):
                self._access(dice, root, function, mmio)
            assert isinstance(function.status(), dict)
        finally:
            function.close()
        assert not kvm.slots, f"still in the guest: {kvm.slots}"

    def _access(self, dice: Dice, root: PciRoot, function: Any, mmio: Bus) -> None:
        size = dice.choice((1, 2, 4))
        register = dice.choice((dice.choice(REGISTERS), dice.randrange(4096)))
        register -= register % size
        value = dice.choice((0, 1, 2, 6, 0x8000, 0xC000, 0xE0000000, 0xFFFFFFFF, dice.integer()))
        kind = dice.randrange(6)
        if kind < 3:
            root.config_write(0, 1, 0, register, value & (1 << 8 * size) - 1, size)
        elif kind < 4:
            found = root.config_read(0, 1, 0, register, size)
            assert 0 <= found < 1 << 8 * size, hex(found)
        else:
            at = 0xE0000000 + dice.choice((0x2000, 0x2008, 0x200C, 0x3000, dice.randrange(0x4000)))
            at -= at % size
            if kind == 4:
                mmio.write(at, value & (1 << 8 * size) - 1, size)
            else:
                mmio.read(at, size)


class Aml(PythonTarget):
    """Terms of any shape, loaded and evaluated by ACPICA, which is Linux's interpreter as well."""

    name = "aml"
    plants = ("unchecked",)
    quick = 6

    def plant(self, fault: str) -> None:
        """Lengths of two bytes lack a bit."""
        usual = aml.pkg_length
        aml.pkg_length = lambda length: usual(length & ~0x40 if length > 0x40 else length)

    def begin(self, folder: Path) -> None:
        """As PythonTarget."""
        if shutil.which("acpiexec") is None:
            raise FileNotFoundError("acpiexec (remedy: apt-get install acpica-tools)")
        self._folder = folder

    def one(self, dice: Dice) -> None:
        """As PythonTarget."""
        if dice.chance(3):
            self._ours(dice)
            return
        terms, expected = [], {}
        for number in range(dice.randrange(1, 30)):
            path = f"{dice.choice('ABCDE')}{number:03X}"
            value, text = self._value(dice, 0)
            term = aml.name(path, value)
            place = ""
            if dice.chance(3):
                term, value, text = self._method(dice, path)
            for depth in range(dice.choice((0, 0, 1, 3))):
                outer = f"D{depth:01X}{number:02X}"
                term = dice.choice((aml.device, aml.device))(outer, term)
                place = f"{outer}.{place}"
            terms.append(term)
            expected[f"\\{place}{path}"] = text
        dice.input = expected
        self._evaluate(table(b"DSDT", 2, b"FUZZTEST", b"".join(terms)), expected)

    def _method(self, dice: Dice, path: str) -> tuple[bytes, bytes, str]:
        mask, wanted, given = (dice.integer() for _ in range(3))
        value, text = self._value(dice, 1)
        other = given & mask
        body = (
            aml.if_(aml.equal(aml.integer(given), aml.integer(wanted)), aml.return_(value)),
            aml.return_(aml.and_(aml.integer(given), aml.integer(mask))),
        )
        answer = text if given == wanted else f"[Integer] = {other:016X}"
        return aml.method(path, 0, dice.chance(2), *body), value, answer

    def _value(self, dice: Dice, depth: int) -> tuple[bytes, str]:
        kind = dice.randrange(4 if depth < 2 else 3)
        if kind == 0:
            number = dice.integer()
            return aml.integer(number), f"[Integer] = {number:016X}"
        if kind == 1:
            text = "".join(dice.choice("abcxyz 019_") for _ in range(dice.choice((0, 1, 5, 70))))
            return aml.string(text), f'[String] Length {len(text):02X} = "{text}"'
        if kind == 2:
            data = dice.randbytes(dice.choice((1, 2, 58, 59, 60, 61, 62, 63, 64, 300, 4090, 4100)))
            return aml.buffer(data), f"[Buffer] Length {len(data):02X} ="
        inner = [self._value(dice, depth + 1) for _ in range(dice.randrange(1, 5))]
        text = f"[Package] Contains {len(inner)} Elements:"
        return aml.package(*[term for term, _ in inner]), text

    def _ours(self, dice: Dice) -> None:
        """The tables of a machine: each processor and each part of it is there, for ACPICA too."""
        count = dice.choice((1, 2, 3, 64, 255, 256, dice.randrange(1, 400)))
        base = dice.randrange(1, 512) << 30
        ged = dice.randrange(1, 1 << 34) << 12
        made = build_acpi(AcpiSpec(list(range(count)), (base, 1 << 30), ged))
        at = made.index(b"DSDT")
        size = int.from_bytes(made[at + 4 : at + 8], "little")
        dice.input = (count, hex(base), hex(ged))
        expected = {f"\\_SB.CPUS.C{n:03X}._UID": f"[Integer] = {n:016X}" for n in (0, count - 1)}
        self._evaluate(made[at : at + size], {**expected, "\\_S5": "[Package] Contains"})

    def _evaluate(self, data: bytes, expected: dict[str, str]) -> None:
        (self._folder / "t.aml").write_bytes(data)
        asked = ";".join(f"evaluate {path}" for path in expected)
        done = subprocess.run(
            ["acpiexec", "-b", asked, "t.aml"],
            cwd=self._folder, capture_output=True, text=True, timeout=60, errors="replace",
        )  # fmt: skip
        told = done.stdout + done.stderr
        assert done.returncode == 0, told[-2000:]
        assert "ACPI Error" not in told, told[-3000:]
        for path, text in expected.items():
            answer = told.partition(f"Evaluating {path}\n")[2].partition("Evaluating ")[0]
            assert text in answer, f"{path}: {text} expected: {answer[:500] or told[-2000:]}"


TARGETS = (Passthrough(), Aml())
