"""One KVM virtual machine: RAM slots, interrupt controller, vCPUs, doorbells, in that order."""

from __future__ import annotations

from vmm._native.kvm.vcpu import VcpuFd
from vmm._native.kvm.vm import Kvm, VmFd
from vmm.irq import IrqRouter
from vmm.layout import IDENTITY_MAP_GPA, PAGE_SIZE, TSS_GPA
from vmm.light.teardown import close_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm._native.kvm.bus import Bus
    from vmm._native.memory.guestmem import GuestMemory

CAP_COALESCED_MMIO = 15
CAP_COALESCED_PIO = 162
CAP_X2APIC_API = 129
# KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK
X2APIC_API_FLAGS = 3
# APIC ids above this need the 32-bit interface.
XAPIC_ID_MAX = 254


class Doorbells:
    """Registers eventfds that the kernel signals when the guest writes a queue's address.

    Without state of its own; any thread may call.
    """

    def __init__(self, vm: VmFd) -> None:
        self._vm = vm

    def attach(self, gpa: int, eventfd: int) -> None:
        """Signal ``eventfd`` on a write of any length at ``gpa``."""
        self._vm.ioeventfd(eventfd, gpa)

    def detach(self, gpa: int, eventfd: int) -> None:
        """Undo attach()."""
        self._vm.ioeventfd(eventfd, gpa, assign=False)


class DeviceSlots:
    """Memory slots for device memory. They come and go while the guest runs (a BAR moves).

    The PCI bus's lock (PciRoot) holds them while it does.
    """

    def __init__(self, vm: VmFd, first: int) -> None:
        self._vm = vm
        self._next = first
        self._free: list[int] = []
        self._ranges: dict[int, int] = {}

    def map(self, gpa: int, size: int, hva: int) -> int:
        """Let the guest reach ``size`` bytes of this process's memory at ``gpa``; its slot."""
        slot = self._free[-1] if self._free else self._next
        self._vm.set_user_memory_region(slot, gpa, size, hva)
        if self._free:
            self._free.pop()
        else:
            self._next += 1
        self._ranges[slot] = gpa
        return slot

    def unmap(self, slot: int) -> None:
        """Take it away again."""
        self._vm.set_user_memory_region(slot, self._ranges[slot], 0, 0)
        del self._ranges[slot]
        self._free.append(slot)


class Vm:
    """The VM's kernel side. Build it in this order: memory, then irqchip, then vCPUs.

    A memory slot that is set after the interrupt controller exists waits for a grace period of
    the kernel, 8 to 10 ms; before it, it takes 0.1 ms.
    """

    def __init__(self, kvm: Kvm) -> None:
        self.kvm = kvm
        self.fd = kvm.create_vm()
        self.irq = IrqRouter(self.fd)
        self.doorbells = Doorbells(self.fd)
        self.vcpu_fds: list[VcpuFd] = []
        self.device_slots: DeviceSlots

    def map_memory(self, memory: GuestMemory) -> None:
        """One slot for each region of RAM."""
        for slot, (gpa, size, hva) in enumerate(memory.slots):
            self.fd.set_user_memory_region(slot, gpa, size, hva)
        self.device_slots = DeviceSlots(self.fd, len(memory.slots))

    def create_irqchip(self, apic_ids: list[int]) -> None:
        """Interrupt controllers in the kernel; wide APIC ids when some need them."""
        self.fd.set_identity_map_addr(IDENTITY_MAP_GPA)
        self.fd.set_tss_addr(TSS_GPA)
        self.fd.create_irqchip()
        self.irq.connect_pins()
        if max(apic_ids) > XAPIC_ID_MAX:
            self.fd.enable_cap(CAP_X2APIC_API, X2APIC_API_FLAGS)

    def create_vcpus(self, apic_ids: list[int]) -> None:
        """The vCPUs, in order; number 0 is the one that boots."""
        mmap_size = self.kvm.get_vcpu_mmap_size()
        for index, apic_id in enumerate(apic_ids):
            self.vcpu_fds.append(self.fd.create_vcpu(apic_id, index, mmap_size))

    def keep_writes(self, ports: Bus, first: int, count: int) -> None:
        """Let writes to these ports wait in the kernel until the vCPU's next exit.

        Once the vCPUs are made and before they run; nothing happens where KVM cannot.
        """
        page = self.kvm.check_extension(CAP_COALESCED_MMIO)
        whole = (page + 1) * PAGE_SIZE <= self.kvm.get_vcpu_mmap_size()
        if page and whole and self.kvm.check_extension(CAP_COALESCED_PIO):
            self.fd.register_coalesced_mmio(first, count, pio=True)
            ports.ring_offset = page * PAGE_SIZE

    def close(self) -> None:
        """Close everything in reverse order; the vCPU threads have ended before."""
        vcpus = [vcpu.close for vcpu in reversed(self.vcpu_fds)]
        close_all([self.irq.close, *vcpus, self.fd.close])
