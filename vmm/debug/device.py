"""What devices that are Python classes have in common, and how a guest gets them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from vmm import layout
from vmm.errors import ConfigError, HostError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.debug.caller import Caller
    from vmm.debug.cpu import Cpu
    from vmm.debug.ram import Ram
    from vmm.machine import Machine


class Device:
    """Base of PciDevice and VirtioDevice. One object belongs to one guest, for good.

    ``guest`` and ``memory`` are there once the guest is made; ``cpu`` is the vCPU that came here
    last. Methods run on the thread that called run().
    """

    name: str = ""
    cpu: Cpu | None = None
    _guest: Any = None
    _taken = False

    @property
    def guest(self) -> Any:
        """The guest that has this device; RuntimeError before there is one."""
        if self._guest is None:
            raise RuntimeError(f"{self!r} belongs to no guest yet")
        return self._guest

    @property
    def memory(self) -> Ram:
        """Guest physical memory, for DMA; ValueError outside of RAM."""
        memory: Ram = self.guest.memory
        return memory

    def reset(self) -> None:
        """As after power-on: called when the guest is made, and when a driver resets it."""

    def overrides(self, name: str, base: type[Device]) -> bool:
        """Whether a subclass has its own method ``name``."""
        return getattr(type(self), name) is not getattr(base, name)

    def _attach(self, machine: Machine, slot: int, caller: Caller) -> None:
        raise NotImplementedError(f"{type(self).__name__}: subclass PciDevice or VirtioDevice")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


def check_number(device: Device, field: str, value: object, bits: int) -> None:
    """ValueError unless it is an unsigned integer of so many bits."""
    if not isinstance(value, int) or not 0 <= value < 1 << bits:
        raise ValueError(f"{device.name}: {field}={value!r}: an integer of {bits} bits is needed")


def split_devices(settings: dict[str, Any]) -> list[Device]:
    """Take what is a Python device (objects and classes) out of the setting ``devices``."""
    given = settings.get("devices")
    if given is None or isinstance(given, (str, bytes)) or hasattr(given, "__fspath__"):
        return []
    items = list(given) if isinstance(given, (list, tuple)) else [given]
    ours = [item for item in items if _is_device(item)]
    others = [item for item in items if not _is_device(item)]
    wrong = [item for item in others if not isinstance(item, (str, os.PathLike))]
    if wrong:
        raise ConfigError(
            [f"devices: {item!r} is neither a PCI address or path nor a device" for item in wrong]
        )
    settings["devices"] = others or None
    return [item() if isinstance(item, type) else item for item in ours]


def _is_device(item: object) -> bool:
    return isinstance(item, Device) or (isinstance(item, type) and issubclass(item, Device))


def attach_devices(devices: Sequence[Device], caller: Caller, machine: Machine) -> None:
    """Put them into the slots behind all others, while a machine is built."""
    names: dict[str, int] = {}
    for device in devices:
        if device._taken:
            raise ValueError(f"{device!r} belongs to a guest already: make another object")
        if not device.name:
            kind = type(device).__name__.lower()
            names[kind] = names.get(kind, -1) + 1
            device.name = f"{kind}{names[kind]}"
        device._attach(machine, _free_slot(machine, device), caller)
        device._taken = True


def connect_devices(devices: Sequence[Device], guest: Any, caller: Caller) -> None:
    """The guest is whole: devices can use it, and vCPUs come to them."""
    caller.connect(guest._control, guest.cpus)
    for device in devices:
        device._guest = guest
        device.reset()


def _free_slot(machine: Machine, device: Device) -> int:
    for slot, function in enumerate(machine.pci.functions):
        if function is None:
            return slot
    raise HostError(
        f"all {layout.PCI_SLOTS} slots of the PCI bus are taken: {device!r} needs another",
        "use fewer disks or devices",
    )
