"""Which BAR answers where: the ranges of one bus follow the registers as soon as they can.

A guest may move BARs in any order, also with decoding on, and one may be in another's way for a
while. Registers always keep what was written. A range that cannot follow stays where it was, until
another BAR has a right to that place; it follows when what was in its way has gone.
"""

from __future__ import annotations

from devices.pci.config_space import COMMAND
from vmm.log.hub import get_logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from devices.pci.bar import Bar
    from devices.pci.function import PciFunction
    from vmm._native.kvm.bus import Bus

    Placed = tuple[PciFunction, Bar]

log = get_logger(__name__)


class Decoding:
    """The ranges of all BARs of one bus. The caller holds the bus's lock (see PciRoot).

    ``windows`` are the (start, size) in which BARs of a space (``memory``, ``ports``) may lie.
    ``failed`` hears of a function that could not follow its BAR.
    """

    def __init__(
        self,
        functions: Sequence[PciFunction | None],
        buses: dict[str, Bus],
        windows: dict[str, list[tuple[int, int]]],
        failed: Callable[[PciFunction, Exception], None],
    ) -> None:
        self._functions = functions
        self._buses = buses
        self._windows = windows
        self._failed = failed

    def settle(self, changed: PciFunction) -> None:
        """Make the bus agree with the registers, after one function's have changed."""
        if all(_agrees(changed, bar) for bar in changed.bars):
            return
        moved = waiting = True
        while moved and waiting:
            # What moves may make room for what was passed over before.
            moved = waiting = False
            for function, bar in self._all():
                if not _agrees(function, bar):
                    follows = self._follow(function, bar)
                    moved, waiting = moved or follows, waiting or not follows

    def inside(self, bar: Bar, start: int) -> bool:
        """Whether a BAR may answer at ``start``."""
        if not bar.wide and start + bar.size > 1 << 32:
            return False
        return any(
            first <= start and start + bar.size <= first + size
            for first, size in self._windows[bar.space]
        )

    def place(self, places: Sequence[tuple[PciFunction, Bar, int | None]]) -> None:
        """Each BAR where it is told, whatever its register says: inside(), no two overlap."""
        moves = [(function, bar, where) for function, bar, where in places if bar.mapped != where]
        for function, bar, _ in moves:
            self._take_away(function, bar)
        for function, bar, where in moves:
            if where is not None:
                self._put(function, bar, where)

    def _all(self) -> Iterator[Placed]:
        for function in self._functions:
            if function is not None:
                for bar in function.bars:
                    yield function, bar

    def _follow(self, function: PciFunction, bar: Bar) -> bool:
        """Bring a range where its register says; False when that is not possible now."""
        wanted = _wanted(function, bar)
        if wanted is None:
            self._take_away(function, bar)
            return True
        if not self.inside(bar, wanted):
            return self._refuse(function, bar, wanted, "outside the PCI windows")
        others = list(self._others(bar, wanted))
        for owner, other in others:
            if other.mapped == _wanted(owner, other):
                return self._refuse(
                    function, bar, wanted, f"{owner.name} BAR {other.index} is there"
                )
        for owner, other in others:
            self._take_away(owner, other)
        return self._put(function, bar, wanted)

    def _others(self, bar: Bar, start: int) -> Iterator[Placed]:
        """What answers now in the range that a BAR wants."""
        for owner, other in self._all():
            if other is not bar and other.mapped is not None and other.space == bar.space:
                if start < other.mapped + other.size and other.mapped < start + bar.size:
                    yield owner, other

    def _put(self, function: PciFunction, bar: Bar, wanted: int) -> bool:
        bus, old = self._buses[bar.space], bar.mapped
        try:
            if old is None:
                name = f"{function.name} BAR {bar.index}"
                bus.attach(wanted, bar.size, function.bar_target(bar), name)
            else:
                bus.move(old, wanted)
        except ValueError as error:
            return self._refuse(function, bar, wanted, str(error))
        bar.refused = None
        self._tell(function, bar, old, wanted)
        return True

    def _take_away(self, function: PciFunction, bar: Bar) -> None:
        old = bar.mapped
        bar.refused = None
        if old is not None:
            self._buses[bar.space].detach(old)
            self._tell(function, bar, old, None)

    def _tell(self, function: PciFunction, bar: Bar, old: int | None, new: int | None) -> None:
        bar.mapped = new
        if log.debugging:
            where = "nowhere" if new is None else f"at {new:#x}"
            log.debug(f"{function.name}: BAR {bar.index} answers {where} now")
        try:
            function.bar_moved(bar, old, new)
        except Exception as error:
            # Perhaps of a function that the guest did not touch just now: the others go on.
            self._failed(function, error)

    def _refuse(self, function: PciFunction, bar: Bar, wanted: int, why: str) -> bool:
        if bar.refused != wanted:
            bar.refused = wanted
            where = "nowhere" if bar.mapped is None else f"at {bar.mapped:#x} still"
            log.info(
                f"{function.name}: BAR {bar.index} waits for {wanted:#x}, it answers {where}: {why}"
            )
        return False


def _wanted(function: PciFunction, bar: Bar) -> int | None:
    """Where a BAR's range belongs by its registers, None for nowhere."""
    return bar.value if bar.answers(function.config.get(COMMAND, 2)) else None


def _agrees(function: PciFunction, bar: Bar) -> bool:
    wanted = _wanted(function, bar)
    # In the middle of a size probe the register holds no address to go to.
    return bar.mapped == wanted or (wanted is not None and not bar.settled)
