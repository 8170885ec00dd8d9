"""Peer to peer: one passed-through device reaches another's memory, where host and IOMMU allow it.

Each mapped part of a BAR gets a DMA mapping at its guest address. Nothing depends on it: without
it devices exchange data through RAM.
"""

from __future__ import annotations

from vmm.log.hub import get_logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from devices.vfio.dma import DmaDomain

log = get_logger(__name__)


class PeerToPeer:
    """The sharing of device memory in one domain.

    share() and withdraw() come under the bus's lock (PciRoot); state() needs none.
    """

    def __init__(self, domain: DmaDomain | None, off: str = "") -> None:
        self._domain = domain
        self.backend = domain.backend if domain is not None else ""
        self._off = off if domain is not None else "no domain"
        self._failed: dict[str, str] = {}
        self._shared: set[str] = set()

    @property
    def offered(self) -> bool:
        """False when no device of this machine can reach another's memory."""
        return not self._off

    def share(self, name: str, gpa: int, size: int, hva: int) -> bool:
        """Let the domain's devices reach [gpa, gpa + size), which is device memory at ``hva``."""
        if self._domain is None or self._off:
            return False
        try:
            self._domain.map_device_memory(hva, gpa, size)
        except OSError as error:
            self._failed[name] = str(error)
            log.info(f"{name} at {gpa:#x} is out of other devices' reach: {error}")
            return False
        self._failed.pop(name, None)
        self._shared.add(name)
        return True

    def withdraw(self, gpa: int, size: int) -> None:
        """Undo share()."""
        if self._domain is not None:
            self._domain.unmap_device_memory(gpa, size)

    def state(self, names: list[str]) -> str:
        """``on``, or ``off:`` with the reason, for the regions with these names."""
        if self._off:
            return f"off: {self._off}"
        # A vCPU may change it meanwhile.
        known = dict(self._failed)
        failed = [f"{name}: {known[name]}" for name in names if name in known]
        if failed:
            return f"off: {'; '.join(failed)}"
        if not self._shared.intersection(names):
            return "off: the guest has no memory of this device mapped"
        return "on"
