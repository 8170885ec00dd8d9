"""One PCI function: its configuration space, its BARs, and what happens when they move."""

from __future__ import annotations

from devices.pci.bar import Bar
from devices.pci.config_space import (
    BAR0,
    BAR_COUNT,
    COMMAND,
    COMMAND_IO,
    COMMAND_MEMORY,
    ROM_BAR,
    ConfigSpace,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class BarMapper(Protocol):
        """Puts ranges on the bus; given by the bus the function sits on."""

        def settle(self, changed: PciFunction) -> None:
            """Bring every range where its register says, as far as that is possible now."""


_BAR_END = BAR0 + 4 * BAR_COUNT
# Dwords of configuration space, one bit each, that are not simply what ConfigSpace keeps.
BAR_DWORDS = ((1 << BAR_COUNT) - 1) << (BAR0 >> 2) | 1 << (ROM_BAR >> 2)


def is_bar(offset: int) -> bool:
    """Whether this byte of configuration space belongs to a BAR or the expansion ROM's."""
    return BAR0 <= offset < _BAR_END or ROM_BAR <= offset < ROM_BAR + 4


class PciFunction:
    """Base of every function.

    Configuration space and BARs belong to the bus's lock (PciRoot): config_read(), config_write()
    and bar_moved() run under it, on vCPU threads. What a subclass has besides needs its own lock,
    which may be taken under the bus's and never the other way round.
    """

    # Of the first 256 bytes: the dwords for which config_read() is called, one bit each. All others
    # are read where ``config`` keeps them, without Python. None: it is called for all of them, as
    # it must be in a class whose config_read() tells something else there.
    asked_dwords: int | None = BAR_DWORDS

    def __init__(self, name: str, config: ConfigSpace) -> None:
        self.name = name
        self.config = config
        self.bars: list[Bar] = []
        self._registers: dict[int, tuple[Bar, int]] = {}
        self.mapper: BarMapper | None = None
        self.slot = 0

    def add_bar(self, bar: Bar) -> None:
        """Take the BAR's one or two registers."""
        self.bars.append(bar)
        self._registers[bar.index] = (bar, 0)
        if bar.wide:
            self._registers[bar.index + 1] = (bar, 1)

    def bar_target(self, bar: Bar) -> object:
        """The bus target behind a BAR; subclasses with BARs say."""
        raise NotImplementedError(f"{self.name} has no BAR {bar.index}")

    def bar_moved(self, bar: Bar, old: int | None, new: int | None) -> None:
        """Called after a BAR's range moved, appeared (old None) or went (new None).

        Under the bus's lock and no other.
        """

    def failed(self) -> None:
        """Something of this function raised on a vCPU's thread; no lock is held, or the bus's."""

    def state(self) -> dict[str, object]:
        """What it keeps besides configuration space and BARs; StateError where nobody can tell."""
        return {"version": 1}

    def set_state(self, state: object) -> None:
        """A state() again, with configuration space and BARs there already (PciRoot.set_state)."""
        from vmm.light.state import read_state

        read_state(self.name, state, {})

    def mark(self) -> object:
        """Another value after something changed that is no access of a vCPU's to a BAR."""
        return None

    def quiesce(self) -> None:
        """Stand still, so that state() is of one moment; control thread, vCPUs stand still."""

    def go_on(self) -> None:
        """Work again."""

    def status(self) -> dict[str, object]:
        """Facts for `status`."""
        return {"name": self.name, "slot": self.slot}

    def enable(self) -> None:
        """Switch decoding on, as a machine built by us hands it to the guest."""
        self.config.set(COMMAND, self.decode_bits, 2)
        self.update_bars()

    @property
    def decode_bits(self) -> int:
        """The command register's bits that make all BARs answer."""
        ports = any(bar.decode_bit == COMMAND_IO for bar in self.bars)
        return COMMAND_MEMORY | (COMMAND_IO if ports else 0)

    def config_read(self, offset: int, size: int) -> int:
        """Read ``size`` (1, 2, 4) bytes; ``offset`` + ``size`` lies inside one dword."""
        if is_bar(offset):
            register = self._registers.get((offset - BAR0) >> 2)
            value = register[0].read(register[1]) if register else 0
            return value >> 8 * (offset & 3) & ((1 << 8 * size) - 1)
        return self.config.get(offset, size)

    def config_write(self, offset: int, value: int, size: int) -> None:
        """Write ``size`` bytes inside one dword."""
        if is_bar(offset):
            self._write_bar(offset, value, size)
            return
        self.config.write(offset, value, size)
        if offset <= COMMAND < offset + size or offset <= COMMAND + 1 < offset + size:
            self.update_bars()

    def _write_bar(self, offset: int, value: int, size: int) -> None:
        register = self._registers.get((offset - BAR0) >> 2)
        if register is None:
            return
        bar, half = register
        if size != 4:
            # Read, modify, write of the dword; nobody does it, the specification allows it.
            shift = 8 * (offset & 3)
            mask = ((1 << 8 * size) - 1) << shift
            value = bar.read(half) & ~mask | value << shift
        bar.write(half, value)
        self.update_bars()

    def update_bars(self) -> None:
        """Make the bus agree with the registers."""
        if self.mapper is not None:
            self.mapper.settle(self)
