"""The devices of a guest by the names that the trace and `status` use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm.debug.device import Device
from vmm.debug.handle import Handle
from vmm.debug.hooks import REPLACE, WATCH
from vmm.debug.machinestate import quiesce_platform, state_of
from vmm.errors import StateError
from vmm.light.shown import Shown
from vmm.settings.parse import nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from devices.pci.function import PciFunction
    from vmm.debug.hooks import Hook, Hooks
    from vmm.debug.runcontrol import RunControl
    from vmm.machine import Machine

    Function = Callable[..., Any]

PORTS = "ports"
MEMORY = "memory"


class Place:
    """Where a guest sees a device: ``size`` ports or bytes of ``space`` from ``start`` on.

    ``space`` is ports or memory; ``bar`` the number of the BAR, None for a place that is fixed.
    """

    def __init__(self, space: str, start: int, size: int, bar: int | None = None) -> None:
        self.space = space
        self.start = start
        self.size = size
        self.bar = bar

    def __repr__(self) -> str:
        bar = "" if self.bar is None else f"BAR {self.bar}: "
        return f"{bar}{self.space} [{self.start:#x}, {self.start + self.size:#x})"


class DeviceHook(Handle):
    """What watches or replaces a device: ``hooks`` is one for each of its places."""

    def __init__(self, name: str, hooks: Sequence[Hook]) -> None:
        super().__init__()
        self.name = name
        self.hooks = hooks

    @property
    def hits(self) -> int:
        """How often the guest came there."""
        return sum([hook.hits for hook in self.hooks])

    def _switched(self) -> None:
        for hook in self.hooks:
            hook.enabled = self._enabled

    def _gone(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def __repr__(self) -> str:
        mode = self.hooks[0].mode
        return f"<{mode} hook at {self.name}, {self.hits} hits{self._state}>"


class GuestDevice(Shown):
    """One device of a guest. The thread that drives the guest; ``places`` and ``repr``: any.

    ``name`` is the trace's; ``bdf`` its address on the PCI bus ("00:02.0"), None for others.
    """

    def __init__(
        self, name: str, machine: Machine, hooks: Hooks, control: RunControl,
        function: PciFunction | None, model: Any,
    ) -> None:  # fmt: skip
        self.name = name
        self.bdf = None if function is None else f"00:{function.slot:02x}.0"
        self._machine = machine
        self._hooks = hooks
        self._control = control
        self._function = function
        self._model = model

    @property
    def places(self) -> list[Place]:
        """Where it answers now: a guest may move BARs, and switch them off."""
        if self._function is not None:
            return [
                Place(bar.space, bar.mapped, bar.size, bar.index)
                for bar in self._function.bars
                if bar.mapped is not None
            ]
        return [
            Place(space, start, size)
            for space, bus in ((PORTS, self._machine.pio), (MEMORY, self._machine.mmio))
            for start, size, name in bus.ranges()
            if name == self.name
        ]

    @property
    def bars(self) -> dict[int, tuple[int, int | None]]:
        """Of a PCI function: each BAR's size in bytes, and where it answers now (None: nowhere)."""
        bars = () if self._function is None else self._function.bars
        return {bar.index: (bar.size, bar.mapped) for bar in bars}

    def status(self) -> dict[str, object]:
        """Facts and counters, as `status` has them."""
        return {"name": self.name} if self._function is None else self._function.status()

    def state(self) -> dict[str, object]:
        """What a snapshot would keep of it: numbers and bytes by name. StateError where nobody can
        tell (a device of the host's, a Python class without state()).
        """
        script = getattr(self._function, "device", None)
        if isinstance(script, Device) and not hasattr(script, "state"):
            raise StateError(f"{self.name}: {type(script).__name__} has no state()", "give it one")
        with self._control.standing():
            if self._function is None:
                quiesce_platform(self._machine)
                return state_of(self.name, self._model)
            self._function.quiesce()
            try:
                return state_of(self.name, self._model)
            finally:
                self._function.go_on()

    def watch(
        self, function: Function | None = None, *, read: Function | None = None,
        write: Function | None = None,
    ) -> DeviceHook:  # fmt: skip
        """Hear of the guest's accesses: on_port() and on_mmio() with mode="watch" at each of its
        places, as they are now. ``function(cpu, address, value, size)`` is of reads and writes.

        Doorbells of virtio queues make no exit, and are not heard.
        """
        if function is not None and (read is not None or write is not None):
            raise ValueError(f"{self.name}: one function for both, or read= and write=")
        return self._hook(read or function, write or function, WATCH)

    def replace(
        self, read: Function | None = None, write: Function | None = None
    ) -> DeviceHook:  # fmt: skip
        """Stand in its place, until remove(): ``read(cpu, address, size)``,
        ``write(cpu, address, value, size)``.
        """
        return self._hook(read, write, REPLACE)

    def _hook(self, read: Function | None, write: Function | None, mode: str) -> DeviceHook:
        made: list[Hook] = []
        places = self.places
        if not places:
            raise ValueError(f"{self!r} answers nowhere now: nothing can be hooked")
        try:
            for place in places:
                on = self._hooks.on_port if place.space == PORTS else self._hooks.on_mmio
                made.append(on(place.start, place.size, read, write, mode))
        except BaseException:
            for hook in made:
                hook.remove()
            raise
        return DeviceHook(self.name, made)

    def __repr__(self) -> str:
        at = [] if self.bdf is None else [self.bdf]
        at += [repr(place) for place in self.places]
        return f"<device {self.name} at {', '.join(at) or 'no place'}>"


class Devices(Shown):
    """All devices of a guest: ``devices["disk0"]``, and iteration in the order of the PCI bus,
    then of ports and addresses. Any thread.
    """

    def __init__(self, machine: Machine, hooks: Hooks, control: RunControl) -> None:
        self._machine = machine
        self._parts = (machine, hooks, control)

    def _found(self) -> dict[str, GuestDevice]:
        pci = self._machine.pci
        found: dict[str, GuestDevice] = {}
        bars: set[tuple[str, int | None]] = set()
        for function in pci.functions:
            if function is not None:
                bars |= {(bar.space, bar.mapped) for bar in function.bars}
                found[function.name] = GuestDevice(function.name, *self._parts, function, function)
        for space, bus in ((PORTS, self._machine.pio), (MEMORY, self._machine.mmio)):
            for start, name, model in bus.devices():
                if (space, start) in bars or name in found or getattr(model, "no_state", False):
                    continue
                bus_itself = model is pci.ports or model is pci.ecam
                model = pci if bus_itself else model
                found[name] = GuestDevice(name, *self._parts, None, model)
        return found

    def __getitem__(self, name: str) -> GuestDevice:
        found = self._found()
        if name not in found:
            raise KeyError(f"no device {name!r}{_hint(name, found)}: there are {', '.join(found)}")
        return found[name]

    def __contains__(self, name: object) -> bool:
        return name in self._found()

    def __iter__(self) -> Iterator[GuestDevice]:
        return iter(self._found().values())

    def __len__(self) -> int:
        return len(self._found())

    def __repr__(self) -> str:
        return "\n".join([repr(device) for device in self])


def _hint(name: object, known: Iterable[str]) -> str:
    by_small = {one.lower(): one for one in known}
    small = str(name).lower()
    if small in by_small:
        return f" (did you mean {by_small[small]}?)"
    return nearest(str(name), list(known))
