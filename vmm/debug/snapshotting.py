"""The part of a Guest that takes snapshots of it, brings it back, and makes others of them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vmm.debug.keywords import CONSOLES
from vmm.debug.snapshot import Snapshot
from vmm.debug.snapshots import Snapshots
from vmm.errors import HostError, StateError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from vmm.debug.cpu import Cpu
    from vmm.debug.device import Device
    from vmm.debug.kernelsymbols import KernelSymbols
    from vmm.debug.pagewatch import PageWatch
    from vmm.debug.patches import Patches
    from vmm.debug.runcontrol import RunControl
    from vmm.host.disk import Disk
    from vmm.machine import Machine
    from vmm.run.outcome import Outcome
    from vmm.settings.config import Config


class Snapshotting:
    """What Guest is made of for snapshots; the thread that drives the guest."""

    config: Config
    machine: Machine
    cpus: Sequence[Cpu]
    _disks: list[Disk]
    _control: RunControl
    _patches: Patches
    _pages: PageWatch
    _taker: Snapshots | None
    _symbols: KernelSymbols
    _devices: Sequence[Device]

    def _build(self, config: Config, kept: set[str], snapshot: Snapshot | None = None) -> None:
        raise NotImplementedError

    def _open(self) -> None:
        raise NotImplementedError

    @property
    def outcome(self) -> Outcome | None:
        """How the guest ended; None while it can go on."""
        return self._control.outcome

    @classmethod
    def over(cls, snapshot: Snapshot) -> Self:
        """A guest that goes on from ``snapshot``; see fork()."""
        guest = cls.__new__(cls)
        guest._build(snapshot.config, set(CONSOLES), snapshot)
        return guest

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """A guest from a file of Snapshot.save(), standing still; nothing of its RAM is read yet.

        StateError when the file is damaged or of another machine. See fork() for what is new in it.
        """
        snapshot = Snapshot.load(path, cls.over)
        try:
            return cls.over(snapshot)
        except (ValueError, OSError) as error:
            raise StateError(
                f"{os.fspath(path)}: {error}", "use the host that it was saved on, or save it anew"
            ) from error

    def _snapshots(self) -> Snapshots:
        if self._taker is None:
            self._taker = Snapshots(
                self.config, self.machine, self._disks, type(self).over, self._pages.lay_out,
                self._symbols.known,
            )  # fmt: skip
        return self._taker

    def snapshot(self) -> Snapshot:
        """All of the guest as it stands still: RAM, vCPUs, interrupts, clock, devices, disks.

        Also inside a breakpoint's action. The first costs the same for any RAM (``shared=on``, the
        default), later ones what was written since the first. HostError: a guest with passed
        through devices or devices in Python, RAM in huge pages, or an image that it writes to.
        """
        self._open()
        if self._devices:
            raise HostError(
                f"{self._devices[0]!r} is a device in Python: nobody knows its state",
                "take snapshots of a guest without such devices",
            )
        with self._control.standing():
            if self.outcome is not None:
                raise RuntimeError(f"the guest has ended ({self.outcome.kind}): nothing to take")
            for cpu in self.cpus:
                cpu.flush()
            self._patches.take_all_out()
            return self._snapshots().capture()

    def restore(self, snapshot: Snapshot) -> None:
        """Make the guest what it was, ended or not: exactly, with its clocks and random numbers.

        Only pages written since are put back. What consoles heard stays; breakpoints stay. An error
        leaves a guest that can only be closed. StateError: a snapshot of another machine.
        """
        self._open()
        if not isinstance(snapshot, Snapshot):
            raise TypeError(f"restore({snapshot!r}): a Snapshot is needed")
        with self._control.driving(ended=True):
            self._control.driver.reset()
            for cpu in self.cpus:
                cpu.forget()
            self._snapshots().restore(snapshot)
            self._patches.forget()
            self._control.restarted()

    def fork(self) -> Self:
        """A second guest from here, standing still: snapshot() and Snapshot.fork() in one.

        RAM is shared until either writes; disks have overlays. Consoles are new. The fork has
        another VM generation id and is told (Linux reseeds); its clocks have gone on. Nobody can
        change what the guest made of itself: host name, machine id, keys, connections.
        """
        return type(self).over(self.snapshot())
