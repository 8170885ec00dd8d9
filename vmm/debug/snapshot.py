"""A guest at one moment: RAM, vCPUs, interrupt controllers, clock, devices, disks."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from vmm._native.kvm.vcpustate import VcpuState
from vmm._native.kvm.vmstate import VmState
from vmm.debug import snapshotfile
from vmm.debug.kernelsymbols import FoundSymbols
from vmm.debug.saveddisks import disks_from, disks_to
from vmm.light.shown import Shown

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    import numpy

    from vmm._native.memory.ramimage import RamImage
    from vmm.debug.machinestate import States
    from vmm.debug.saveddisks import SavedDisk
    from vmm.settings.config import Config


class SnapshotMemory(Shown):
    """A snapshot's RAM by guest physical address (gpa), read only. Any thread."""

    def __init__(self, image: RamImage) -> None:
        self._image = image

    @property
    def regions(self) -> list[tuple[int, int]]:
        """(gpa, size in bytes) of each stretch of RAM."""
        return self._image.regions

    @property
    def size(self) -> int:
        """All RAM in bytes."""
        return self._image.size

    def read(self, gpa: int, length: int) -> bytes:
        """A copy of ``length`` bytes; ValueError outside of RAM."""
        return self._image.read(gpa, length)

    def numpy(
        self, gpa: int, shape: int | tuple[int, ...], dtype: Any = "uint8"
    ) -> numpy.ndarray[Any, Any]:
        """A read-only array of that shape and type; without a copy where no page of it changed
        between the first snapshot of its guest and this one.
        """
        import numpy

        kind = numpy.dtype(dtype)
        count = int(numpy.prod(shape))
        length = count * kind.itemsize
        if not length:
            data: Any = b""
        elif self._image.changed(gpa, length):
            data = self._image.read(gpa, length)
        else:
            data = self._image.base.view(gpa, length)
        return numpy.frombuffer(data, dtype=kind, count=count).reshape(shape)

    def __repr__(self) -> str:
        return f"<snapshot RAM of {self.size >> 20} MiB>"


class Family:
    """What the guests that come from one know of each other.

    ``fresh`` is what the devices of a machine like this are when it is just built, from a first
    fork on: others then set only those that are otherwise. ``symbols`` are their kernel's.
    """

    def __init__(self, symbols: FoundSymbols) -> None:
        self.fresh: States | None = None
        self.symbols = symbols


class Snapshot(Shown):
    """A guest as it stood still; made by guest.snapshot(), never changes. Any thread.

    ``memory`` is its RAM. ``taken`` is when, in seconds since 1970. It stays good when its guest is
    closed.
    """

    def __init__(
        self,
        config: Config,
        ram: RamImage,
        vcpus: Sequence[VcpuState],
        vm: VmState,
        devices: States,
        disks: Sequence[SavedDisk],
        revive: Callable[[Snapshot], Any],
        family: Family | None = None,
    ) -> None:
        """``revive`` makes a guest of a snapshot."""
        self.config = config
        self.ram = ram
        self.vcpus = tuple(vcpus)
        self.vm = vm
        self.devices = devices
        self.disks = tuple(disks)
        self.memory = SnapshotMemory(ram)
        self._revive = revive
        self.family = family or Family(FoundSymbols())
        # The devices that are otherwise than in a machine just built; known from a first fork on.
        self.unlike: list[str] | None = None

    @property
    def taken(self) -> float:
        """When, in seconds since 1970 (UTC)."""
        return self.vm.realtime_ns / 1e9

    @property
    def age_ns(self) -> int:
        """Nanoseconds since it was taken, by the host's time of day; 0 when that went back."""
        return max(0, time.time_ns() - self.vm.realtime_ns)

    def fork(self) -> Any:
        """A new Guest from here, standing still; see Guest.fork()."""
        return self._revive(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file for Guest.load(); one that is there is replaced. HostError, and
        nothing is left.
        """
        disks, layers = disks_to(self.disks)
        values = {
            "config": snapshotfile.config_to(self.config),
            "vcpus": [vcpu.to_state() for vcpu in self.vcpus],
            "vm": self.vm.to_state(),
            "devices": self.devices,
            "disks": disks,
        }
        snapshotfile.write(path, values, self.ram, layers)

    @classmethod
    def load(cls, path: str | os.PathLike[str], revive: Callable[[Snapshot], Any]) -> Snapshot:
        """What save() wrote; StateError says what is wrong with the file, HostError with opening
        it. RAM is mapped, and read by nobody yet.
        """
        with snapshotfile.reading(path) as (values, ram, fd):
            config = snapshotfile.config_from(values["config"], ram.size)
            states = snapshotfile.a_list("vcpus", values["vcpus"], config.cpu_count)
            vcpus = [VcpuState.from_state(state) for state in states]
            vm = VmState.from_state(values["vm"])
            disks = disks_from(values["disks"], fd, ram.base.offset + ram.size)
            return cls(config, ram, vcpus, vm, values["devices"], disks, revive)

    def diff(self, other: Snapshot) -> numpy.ndarray[Any, Any]:
        """The gpas of the pages of 4 KiB that differ, as a uint64 array in ascending order."""
        import numpy

        if not isinstance(other, Snapshot):
            raise TypeError(f"diff({other!r}): a Snapshot is needed")
        return numpy.frombuffer(self.ram.differing(other.ram), dtype="uint64")

    def __repr__(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.taken))
        own = self.ram.count * 4
        return (
            f"<Snapshot of {when}, {len(self.vcpus)} CPUs, {self.ram.size >> 20} MiB, {own} KiB of "
            "its own>"
        )
