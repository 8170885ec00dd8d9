"""The host's devices on the guest's PCI bus: opened, given BARs and an interrupt, put in slots."""

from __future__ import annotations

from devices.vfio import gpudirect
from devices.vfio.domain import open_domain
from devices.vfio.passthrough import PassthroughFunction
from devices.vfio.peers import PeerToPeer
from vmm import layout
from vmm.errors import HostError
from vmm.light.teardown import close_all
from vmm.log.hub import get_logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from devices.pci.root import PciRoot
    from devices.pci.windows import BarWindows
    from devices.vfio.dma import DmaDomain
    from devices.vfio.kernel import VfioKernel
    from vmm._native.kvm.vm import KvmVfio
    from vmm._native.memory.guestmem import GuestMemory
    from vmm.host.pci import HostDevice
    from vmm.irq import IrqRouter
    from vmm.memory import Progress
    from vmm.vm import DeviceSlots

log = get_logger(__name__)


class Passthrough:
    """All passed-through devices of one VM, and the IOMMU domain that they share.

    Built empty and filled by attach(), so that what a failure leaves half-way is closed as well.
    Control thread.
    """

    def __init__(
        self,
        kvm: KvmVfio,
        irq: IrqRouter,
        slots: DeviceSlots,
        memory: GuestMemory,
        pci: PciRoot,
        windows: BarWindows,
    ) -> None:
        self._kvm = kvm
        self._irq = irq
        self._slots = slots
        self._memory = memory
        self._pci = pci
        self._windows = windows
        self.domain: DmaDomain | None = None
        self.functions: list[PassthroughFunction] = []

    def attach(
        self,
        hosts: Sequence[HostDevice],
        kernel: VfioKernel,
        clique: str | int,
        first_slot: int,
        progress: Progress,
    ) -> None:
        """Give the guest all of ``hosts``, in slots from ``first_slot`` on. Raises VmmError.

        ``clique`` is the setting GPUDIRECT_CLIQUE; ``progress`` hears how much RAM is pinned.
        """
        self.domain = open_domain(self._kvm, kernel, hosts, progress)
        peers = PeerToPeer(self.domain, "" if len(hosts) > 1 else "a single device has no peer")
        cliques = gpudirect.choose(clique, [host.bdf for host in hosts], peers.offered)
        for slot, host in enumerate(hosts, first_slot):
            if slot >= layout.PCI_SLOTS:
                raise HostError(
                    f"{host.bdf} finds no slot: the PCI bus has {layout.PCI_SLOTS}",
                    "use fewer devices or disks",
                )
            function = self._open(host, slot, peers, cliques.get(host.bdf))
            self.functions.append(function)
            try:
                self._windows.place_passthrough(function.bars, self.domain.ranges)
            except ValueError as error:
                raise HostError(f"{host.bdf}: {error}", "pass fewer devices through") from None
            self._pci.add(slot, function)
            try:
                function.enable()
            except OSError as error:
                raise _fails(host, error) from error
            log.info(
                f"{host.bdf} (IOMMU group {host.group}) in slot {slot}: {function.attach_ms} ms"
            )

    def _open(
        self, host: HostDevice, slot: int, peers: PeerToPeer, clique: int | None
    ) -> PassthroughFunction:
        assert self.domain is not None
        device = self.domain.open_device(host, self._memory)
        gsi = layout.PCI_INTX_GSI + slot % layout.PCI_INTX_COUNT
        try:
            return PassthroughFunction(host, device, self._irq, gsi, self._slots, peers, clique)
        except OSError as error:
            device.close()
            raise _fails(host, error) from error
        except BaseException:
            device.close()
            raise

    def close(self) -> None:
        """Give the devices back, then unmap guest RAM from the IOMMU; idempotent."""
        steps: list[Callable[[], None]] = [f.close for f in reversed(self.functions)]
        if self.domain is not None:
            steps.append(self.domain.close)
        close_all(steps)


def _fails(host: HostDevice, error: OSError) -> HostError:
    return HostError(f"{host.bdf} fails: {error}", "see the kernel's log")
