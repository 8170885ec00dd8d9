"""`attached.trace`: exits of a running instance's vCPUs, in rings that are in its process."""

from __future__ import annotations

from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from vmm._native.kvm.tracering import RECORD_SIZE
from vmm.debug.trace import Trace
from vmm.errors import VmmError
from vmm.run.attach.wire import READ_MAX

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm.debug.attach.link import Link
    from vmm.machine import Machine

RANGES_MAX = 4096
COUNT_MAX = 1 << 64


class AttachedTrace(Trace):
    """As Trace; one at a time may trace a guest. It ends with the connection at the latest."""

    def __init__(self, link: Link, vcpus: int) -> None:
        self._link = link
        self._asked: tuple[int, bool] = (0, False)
        machine = RemoteMachine(link, vcpus)
        super().__init__(cast("Machine", machine), link.name)

    def _make_rings(self, size: int, rip: bool) -> list[Any]:
        self._asked = size, rip
        return [RemoteRing(self._link, index) for index in range(len(self._loops))]

    def _switch(self, rings: Sequence[Any]) -> None:
        if rings:
            size, rip = self._asked
            try:
                self._link.ask("trace_start", size=size, rip=rip)
            except BaseException:
                self._rings, self.on = [], False
                raise
        elif not self._link.closed:
            with suppress(VmmError):
                self._link.ask("trace_stop")

    def _read(self, seconds: float) -> None:
        with suppress(VmmError):  # the guest is gone: what has been taken stays
            super()._read(seconds)

    def drain(self) -> int:
        """Take what is in the rings; nothing once the connection is gone."""
        return 0 if self._link.closed else super().drain()


class RemoteRing:
    """The ring of vCPU ``index``, which is in the other process."""

    def __init__(self, link: Link, index: int) -> None:
        self._link = link
        self._index = index
        self._waiting = 0
        self._dropped = 0

    def _look(self) -> None:
        if self._link.closed:
            self._waiting = 0
            return
        told, _ = self._link.ask("trace_counts")
        found = []
        for name in ("waiting", "dropped"):
            values = told.get(name)
            value = values[self._index] if isinstance(values, list) and self._has(values) else None
            if type(value) is not int or not 0 <= value < COUNT_MAX:
                raise self._link.nonsense(f"{name}={str(values)[:40]}")
            found.append(value)
        self._waiting, self._dropped = found

    def _has(self, values: list[Any]) -> bool:
        return self._index < len(values)

    @property
    def waiting(self) -> int:
        """Records that wait for the reader."""
        self._look()
        return self._waiting

    @property
    def dropped(self) -> int:
        """Exits that found it full."""
        with suppress(VmmError):
            self._look()
        return self._dropped

    def read_into(self, target: bytearray) -> int:
        """Fill ``target`` with the oldest records; no more than wait() said there are."""
        at = 0
        while at < len(target):
            length = min(len(target) - at, READ_MAX)
            _, data = self._link.ask("trace_take", cpu=self._index, length=length)
            if not 0 < len(data) <= length or len(data) % RECORD_SIZE:
                raise self._link.nonsense(f"{len(data)} bytes of a trace in place of {length}")
            target[at : at + len(data)] = data
            at += len(data)
        return at // RECORD_SIZE


class RemoteMachine:
    """What a trace needs of a machine: what answers where, so that exits have names."""

    def __init__(self, link: Link, vcpus: int) -> None:
        self._link = link
        self._told: dict[str, Any] = {}
        self.vcpus = [SimpleNamespace(loop=None) for _ in range(vcpus)]
        self.pio = SimpleNamespace(ranges=self._ports)
        self.mmio = SimpleNamespace(ranges=lambda: self._ranges("memory"))

    def _ports(self) -> list[tuple[int, int, str]]:
        # Asked for first each time; the others come with it.
        if not self._link.closed:
            self._told, _ = self._link.ask("trace_names")
        return self._ranges("ports")

    def _ranges(self, which: str) -> list[tuple[int, int, str]]:
        return sorted((row[0], row[1], row[2]) for row in self._rows(which, int, int, str))

    def _rows(self, which: str, *types: type) -> Iterator[list[Any]]:
        rows = self._told.get(which)
        for row in rows if isinstance(rows, list) and len(rows) <= RANGES_MAX else [None]:
            if not isinstance(row, list) or [type(part) for part in row] != [*types]:
                raise self._link.nonsense(f"{which}={str(row)[:40]}")
            yield row

    @property
    def virtio(self) -> list[Any]:
        """The virtio functions: name, and number of the BAR."""
        return [
            SimpleNamespace(name=name, bar=SimpleNamespace(index=index))
            for name, index in self._rows("virtio", str, int)
        ]
