"""A KVM virtual machine monitor: control plane in Python, hot half native.

Importing this package costs nothing: names are resolved on first use, so that the command line
starts fast and no import circle through ``devices`` can form.
"""

from __future__ import annotations

__version__ = "0.1.0"
PROGRAM = "vllmd-hypervisor"

_LAZY = {
    "Attached": "vmm.debug.attach.attached",
    "Bar": "vmm.debug.pcidevice",
    "Config": "vmm.settings.config",
    "ConfigError": "vmm.errors",
    "DONE": "vmm.debug.msrhooks",
    "GP": "vmm.debug.msrhooks",
    "Guest": "vmm.debug.guest",
    "GuestMemory": "vmm._native.memory.guestmem",
    "HostError": "vmm.errors",
    "Machine": "vmm.machine",
    "PciDevice": "vmm.debug.pcidevice",
    "Snapshot": "vmm.debug.snapshot",
    "STOP": "vmm.debug.stop",
    "Stop": "vmm.debug.stop",
    "VirtioDevice": "vmm.debug.virtiodevice",
    "VmmError": "vmm.errors",
    "attach": "vmm.debug.attach.attached",
    "build_machine": "vmm.machine",
}


def __getattr__(name: str) -> object:
    """Resolve a public name of the package on first use."""
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'vmm' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(module), name)
