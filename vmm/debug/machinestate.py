"""The devices of a machine as one value: what a snapshot keeps of them besides RAM, vCPUs and KVM.

``quiesce()``, then ``state()`` or ``set_state()``, then ``go_on()``, all on the control thread with
the vCPUs standing still. Each device has a name and a state of its own (see vmm/light/state.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from devices.native_state import set_device_state
from devices.pci.state import NAME as PCI
from vmm.errors import StateError
from vmm.light.state import misfit, show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm._native.disk.overlay import Overlay
    from vmm._native.kvm.bus import Bus
    from vmm.machine import Machine

States = dict[str, dict[str, object]]


def quiesce_platform(machine: Machine) -> None:
    """What is not on the PCI bus stands still, so that its states are of one moment."""
    if machine.uart.raised():
        machine.uart_line.settle()
    machine.ged.quiesce()


class MachineState:
    """Reads and sets the states of all devices of ``machine``, and knows which were used.

    A device counts as used when a guest's access reached it, when its threads served a request, or
    when the host did something to it (typed, pressed the power button), since clear_touched();
    with ``watched`` the first one is at once, else all do before it.
    """

    def __init__(self, machine: Machine, watched: bool = True) -> None:
        self._machine = machine
        self._changes = (-1, -1)
        self._parts: dict[str, Any] = {}
        self._names: dict[int, str] = {}
        self._marked: list[tuple[str, Any]] = []
        # None until the first clear_touched().
        self._marks: list[object] | None = None
        if watched:
            self.clear_touched()

    def quiesce(self) -> None:
        """All threads of devices stop between two requests. StateError where one cannot."""
        for function in self._machine.functions():
            function.quiesce()
        quiesce_platform(self._machine)

    def go_on(self) -> None:
        """They work again. HostError when the host lacks a thread or a descriptor for it."""
        for function in self._machine.functions():
            function.go_on()

    def state(self) -> States:
        """The state of each device by its name; quiesced."""
        return {name: state_of(name, device) for name, device in self.parts().items()}

    def set_state(self, states: Any, base: States | None = None) -> None:
        """Each device as state() told; quiesced. StateError names what does not fit.

        ``base`` is what the devices were at the last clear_touched(): those that were not used
        since, and are the same in both, stay as they are. None: all are set, as those of a machine
        just built must be. What an error leaves is a machine to be closed.
        """
        # What a script put there since stays as it is.
        parts = self._fitting(states, base is None)
        for name in self._chosen(states, base):
            if states[name] != state_of(name, parts[name]):
                set_device_state(name, parts[name], states[name])
        self.clear_touched()

    def unlike(self, states: States, fresh: States) -> list[str]:
        """The devices whose state is not that in ``fresh``, in the order in which they are set.

        StateError names what does not fit.
        """
        return [name for name in self._fitting(states, True) if states[name] != fresh[name]]

    def become(self, states: States, names: Sequence[str]) -> None:
        """Set those of a machine just built that unlike() told of a machine like it."""
        parts = self.parts()
        for name in names:
            set_device_state(name, parts[name], states[name])

    def _fitting(self, states: Any, is_whole: bool) -> dict[str, Any]:
        """The devices, of which each of ``states`` is one; all of them when it is whole."""
        parts = self.parts()
        if type(states) is not dict:
            raise misfit("machine", f" is {show(states)}: a dict by the devices' names is needed")
        for name in parts:
            if name not in states and is_whole:
                raise misfit(name, " is missing")
        for name in states:
            if name not in parts:
                raise misfit("machine", f" has a device {show(name)} that is not here")
        return parts

    def _chosen(self, states: States, base: States | None) -> list[str]:
        """The devices to set, in the order of parts()."""
        if base is None:
            return list(self.parts())
        used = self.touched()
        if states is not base:
            used |= {name for name in states if states[name] != base.get(name)}
        return [name for name in self.parts() if name in used and name in states] if used else []

    def overlays(self) -> dict[str, Overlay]:
        """What is above each writable disk, by the device's name: freeze() and restore() them.

        StateError names a disk that is written itself: what its image was then is gone.
        """
        found = {}
        for function in self._machine.virtio:
            disk = getattr(function.device, "disk", None)
            if disk is None or disk.read_only:
                continue
            if disk.overlay is None:
                raise StateError(
                    f"{function.name}: its image {disk.path} is written itself and cannot go back",
                    "give the guest an overlay above the image (OverlayDisk)",
                )
            found[function.name] = disk.overlay
        return found

    def touched(self) -> set[str]:
        """The names of the devices that were used since clear_touched()."""
        if self._marks is None:
            return set(self.parts())
        self.parts()
        machine, names = self._machine, self._names
        reached = [*machine.pio.touched(), *machine.mmio.touched()]
        used = {names[id(device)] for device in reached if id(device) in names}
        for (name, device), mark in zip(self._marked, self._marks, strict=True):
            if device.mark() != mark:
                used.add(name)
        return used

    def clear_touched(self) -> None:
        """From now on; the vCPUs stand still."""
        self.parts()
        self._machine.pio.clear_touched()
        self._machine.mmio.clear_touched()
        self._marks = [device.mark() for _, device in self._marked]

    def parts(self) -> dict[str, Any]:
        """Every device by its name: the PCI bus first, since BARs lead to others."""
        machine = self._machine
        changes = (machine.pio.changes, machine.mmio.changes)
        if changes != self._changes:
            pairs = zip(self._marked, self._marks or (), strict=False)
            before = {name: mark for (name, _), mark in pairs}
            self._find_parts()
            self._marked = [(n, d) for n, d in self._parts.items() if hasattr(d, "mark")]
            if self._marks is not None:
                self._marks = [before.get(name) for name, _ in self._marked]
            self._changes = changes
        return self._parts

    def _find_parts(self) -> None:
        pci = self._machine.pci
        self._parts = {PCI: pci}
        self._names = {id(pci.ports): PCI, id(pci.ecam): PCI}
        bars: dict[tuple[str, int | None], str] = {}
        for function in pci.functions:
            if function is not None:
                self._add(function.name, function)
                bars |= {(bar.space, bar.mapped): function.name for bar in function.bars}
        self._add_bus(self._machine.pio, "ports", bars)
        self._add_bus(self._machine.mmio, "memory", bars)

    def _add_bus(self, bus: Bus, space: str, bars: dict[tuple[str, int | None], str]) -> None:
        for start, name, device in bus.devices():
            owner = bars.get((space, start))
            if owner is not None:
                self._names[id(device)] = owner
            elif id(device) not in self._names:
                self._add(f"{name} at {start:#x}" if name in self._parts else name, device)

    def _add(self, name: str, device: object) -> None:
        if getattr(device, "no_state", False):
            return
        self._parts[name] = device
        self._names[id(device)] = name


def state_of(name: str, device: Any) -> dict[str, object]:
    """The state of one device; StateError when its class has none."""
    if not hasattr(device, "state") or not hasattr(device, "set_state"):
        raise StateError(
            f"{name}: a {type(device).__name__} has no state() and set_state()",
            "give its class both, or take it away before the snapshot",
        )
    found: dict[str, object] = device.state()
    return found
