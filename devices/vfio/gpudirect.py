"""GPUDirect cliques: which NVIDIA GPUs reach each other's memory, told to the guest's driver.

A vendor capability in configuration space names the clique of a GPU; GPUs of one clique exchange
data directly. Source: NVIDIA's "GPUDirect P2P on virtual machines" capability, as QEMU's
documentation of x-nv-gpudirect-clique has it.
"""

from __future__ import annotations

import os

from vmm.host.pci import SYS_DEVICES, identity
from vmm.log.hub import get_logger

log = get_logger(__name__)

NVIDIA = 0x10DE
DISPLAY = 0x03
OFF = "off"
OFFSET = 0xD4
SIZE = 8
# Vendor capability, no successor, 8 bytes, then "P2P" and the clique from bit 19 of the second
# word on.
HEAD = 0x50080009
SIGNATURE = 0x5032
CLIQUE_SHIFT = 19


def capability(clique: int) -> tuple[int, int]:
    """The two dwords at OFFSET."""
    return HEAD, clique << CLIQUE_SHIFT | SIGNATURE


def choose(setting: str | int, bdfs: list[str], shared: bool) -> dict[str, int]:
    """The clique of each GPU that gets one; ``shared``: device memory is open to peers at all.

    ``auto`` puts GPUs behind one PCI Express switch into one clique, since there they reach each
    other without passing the root complex; a number puts all GPUs into that clique.
    """
    gpus = [bdf for bdf in bdfs if is_gpu(bdf)]
    if isinstance(setting, int):
        if not gpus:
            log.warning("a GPUDirect clique is set and no NVIDIA GPU is passed through")
        return dict.fromkeys(gpus, setting)
    if setting == OFF or not shared:
        return {}
    return automatic({bdf: os.path.realpath(os.path.join(SYS_DEVICES, bdf)) for bdf in gpus})


def is_gpu(bdf: str) -> bool:
    """Whether it is a display controller of NVIDIA's."""
    vendor, pci_class = identity(bdf)
    return vendor == NVIDIA and pci_class >> 8 == DISPLAY


def automatic(paths: dict[str, str]) -> dict[str, int]:
    """Cliques by the sysfs paths of GPUs: those below one root port share a switch."""
    behind: dict[str, list[str]] = {}
    for bdf, path in paths.items():
        # /sys/devices/pciDDDD:BB/ROOT PORT/UPSTREAM PORT/DOWNSTREAM PORT/GPU
        parts = path.split("/")
        root = next((n for n, part in enumerate(parts) if part.startswith("pci")), len(parts))
        behind.setdefault("/".join(parts[: root + 2]), []).append(bdf)
    cliques = [members for members in behind.values() if len(members) > 1]
    return {bdf: number for number, members in enumerate(cliques) for bdf in members}
