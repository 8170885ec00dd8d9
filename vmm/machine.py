"""The story of a VM, top to bottom: what it is made of and in which order it is put together."""

from __future__ import annotations

import os
import time

from devices.acpi_pm import AcpiRegisters, Ged
from devices.debugcon import FirmwareDebugPort
from devices.i8042 import I8042
from devices.pci.root import PciRoot
from devices.pvpanic import PvPanic
from devices.rtc import Rtc
from devices.virtio.block import Block
from devices.virtio.console import Console
from devices.virtio.pci import VirtioPciFunction
from devices.virtio.rng import Rng
from vmm import layout
from vmm._native.console.uart import Uart
from vmm._native.host.posix import host_cpuid
from vmm._native.kvm import bus as outcomes
from vmm._native.kvm.bus import Bus
from vmm._native.ports.pmtimer import PmTimer
from vmm._native.ports.postport import PostPort
from vmm.acpi.spec import AcpiSpec
from vmm.acpi.tables import build_acpi
from vmm.boot.image import BZIMAGE
from vmm.boot.kernel import load_guest, open_plan
from vmm.boot.smbios import build_smbios
from vmm.errors import HostError
from vmm.host.kvm import check_vcpu_count, open_kvm
from vmm.log.hub import get_logger
from vmm.memory import allocate, memory_status, no_progress
from vmm.vcpu import BootState, Vcpu
from vmm.vm import Vm
from vmm.x86 import cpuid, lapic, msr, regs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from devices.vfio.dma import DmaDomain
    from devices.vfio.kernel import VfioKernel
    from devices.vfio.passthrough import PassthroughFunction
    from devices.virtio.device import VirtioDevice
    from vmm._native.memory.guestmem import GuestMemory
    from vmm.host.console import HostConsole
    from vmm.host.disk import Disk
    from vmm.memory import Progress
    from vmm.settings.config import Config

log = get_logger(__name__)

# 64-bit BARs of virtio devices are placed at multiples of this, as on Cloud Hypervisor.
WIDE_BAR_ALIGNMENT = 8 * layout.MIB
DISK_QUEUES_MAX = 4
ADDRESS_BITS_LEAF = 0x80000008
ADDRESS_BITS_DEFAULT = 36
# The name of KVM_EXIT_SHUTDOWN, which is how KVM reports a triple fault.
TRIPLE_FAULT_EXIT = "shutdown"


class Outcome:
    """Why the guest stopped: ``kind`` is reset, shutdown, panic, crash or error.

    ``report`` holds registers and last exits, where something went wrong.
    """

    def __init__(self, kind: str, reason: str, report: str = "") -> None:
        self.kind = kind
        self.reason = reason
        self.report = report


class Machine:
    """A built VM. Everything here belongs to the control thread.

    ``outcome_fd`` becomes readable when a vCPU has left the guest for good; outcome() says why.
    close() ends the vCPUs, the devices and the kernel's side, in this order, and may be called in
    any state.
    """

    def __init__(
        self,
        config: Config,
        progress: Progress = no_progress,
        vfio_kernel: VfioKernel | None = None,
    ) -> None:
        self.config = config
        self.progress = progress
        self.vfio_kernel = vfio_kernel
        self.outcome_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.pio = Bus("ports")
        self.mmio = Bus("MMIO")
        self.vcpus: list[Vcpu] = []
        self.virtio: list[VirtioPciFunction] = []
        self.passthrough: list[PassthroughFunction] = []
        self.phases: dict[str, float] = {}
        self._started = time.monotonic()
        self._closed = False
        # Set while building, in this order.
        self.memory: GuestMemory
        self.vm: Vm
        self.pci: PciRoot
        self.window32: layout.TopDownAllocator
        self.window64: layout.TopDownAllocator
        self.io_window: layout.TopDownAllocator
        self.domain: DmaDomain | None = None
        self.ged: Ged
        self.pvpanic: PvPanic
        self.uart: Uart
        self.console: Console

    def mark(self, phase: str) -> None:
        """Remember when a phase of the start ended, in ms since its beginning."""
        self.phases[phase] = round((time.monotonic() - self._started) * 1000, 3)

    def start(self) -> None:
        """Let the guest run."""
        for vcpu in self.vcpus:
            vcpu.start()
        self.mark("running")

    def power_button(self) -> None:
        """Press the ACPI power button."""
        self.ged.power_button()

    def resize(self, columns: int, rows: int) -> None:
        """Tell the guest the size of its console."""
        self.console.resize(columns, rows)

    def stop_vcpus(self) -> None:
        """End all vCPU threads; the guest executes nothing more."""
        for vcpu in self.vcpus:
            vcpu.kick()
        for vcpu in self.vcpus:
            vcpu.join()

    def outcome(self) -> Outcome:
        """Stop the other vCPUs and tell why the first one left."""
        ended = [vcpu for vcpu in self.vcpus if not vcpu.loop.running]
        self.stop_vcpus()
        for vcpu in ended:
            kind = vcpu.loop.outcome
            if kind == outcomes.RESET:
                return self._reset(vcpu)
            if kind == outcomes.SHUTDOWN and self.pvpanic.panicked:
                return Outcome("panic", "the guest's kernel panicked", vcpu.report(self.memory))
            if kind == outcomes.SHUTDOWN:
                return Outcome("shutdown", "the guest powered itself off")
            if kind == outcomes.CRASH:
                return Outcome("crash", vcpu.loop.stop_detail(), vcpu.report(self.memory))
            if kind == outcomes.ERROR:
                return self._error(vcpu)
        return Outcome("error", "the vCPUs stopped without a reason")

    def _reset(self, vcpu: Vcpu) -> Outcome:
        if vcpu.loop.stop_detail() == TRIPLE_FAULT_EXIT:
            return Outcome("reset", "the guest triple-faulted", vcpu.report(self.memory))
        _, port, _, _, value = vcpu.loop.last_exits()[-1]
        return Outcome("reset", f"the guest reset the machine ({value:#x} to port {port:#x})")

    def _error(self, vcpu: Vcpu) -> Outcome:
        error = self.pio.error or self.mmio.error
        if error is None:
            return Outcome("error", vcpu.loop.stop_detail(), vcpu.report(self.memory))
        import traceback

        text = "".join(traceback.format_exception(error))
        return Outcome("error", f"a device failed: {error!r}", text + vcpu.report(self.memory))

    def status(self) -> dict[str, object]:
        """Facts for `status`: memory, vCPUs, disks and devices, exits, phases of the start."""
        exits: dict[str, int] = {}
        for vcpu in self.vcpus:
            for name, count in vcpu.loop.counters().items():
                exits[name] = exits.get(name, 0) + count
        return {
            "memory": memory_status(self.config.memory),
            "vcpus": [vcpu.status() for vcpu in self.vcpus],
            "devices": [f.status() for f in (*self.virtio, *self.passthrough)],
            "exits": exits,
            "boot": dict(self.phases),
        }

    def activity(self) -> int:
        """Requests that the devices served so far: it grows while a driver works with them."""
        return sum([function.device.activity() for function in self.virtio])

    def close(self) -> None:
        """Take the machine apart in reverse order of building; idempotent."""
        if self._closed:
            return
        self._closed = True
        self.stop_vcpus()
        for device in reversed(self.passthrough):
            device.close()
        if self.domain is not None:
            self.domain.close()
        for function in reversed(self.virtio):
            function.close()
        if hasattr(self, "uart"):
            self.uart.close()
        if hasattr(self, "vm"):
            self.vm.close()
            self.vm.kvm.close()
        if hasattr(self, "memory"):
            self.memory.close()
        os.close(self.outcome_fd)


def build_machine(
    config: Config,
    disks: Sequence[Disk],
    console: HostConsole,
    serial: HostConsole,
    cache_directory: str | None = None,
    progress: Progress = no_progress,
    vfio_kernel: VfioKernel | None = None,
) -> Machine:
    """Build a machine by ``config``, paused at its entry point. Raises VmmError.

    ``disks`` are the opened and locked images in the order of their slots; they and the consoles
    outlive the machine, so that a guest's reboot can use them again. ``progress`` hears of the
    steps that take long with much RAM. ``vfio_kernel`` opens VFIO's files; None: the kernel's own.
    """
    machine = Machine(config, progress, vfio_kernel)
    try:
        _build(machine, disks, console, serial, cache_directory)
    except BaseException:
        machine.close()
        raise
    return machine


def _build(
    machine: Machine,
    disks: Sequence[Disk],
    console: HostConsole,
    serial: HostConsole,
    cache_directory: str | None,
) -> None:
    config = machine.config
    kernel_fd, plan = open_plan(config.kernel_path, cache_directory)
    try:
        topology = cpuid.flat_topology(config.cpu_count)
        apic_ids = topology.apic_ids()
        create_vm(machine, apic_ids)
        machine.mark("vm")
        attach_platform(machine, serial)
        attach_pci(machine)
        attach_virtio(machine, disks, console)
        machine.mark("devices")
        if config.devices:
            attach_passthrough(machine)
            machine.mark("passthrough")
        load_guest(
            plan, kernel_fd, config.kernel_path, machine.memory, config.initramfs_path,
            config.cmdline,
        )  # fmt: skip
        describe_platform(machine, apic_ids)
        entry_regs = regs.bzimage_regs if plan.kind == BZIMAGE else regs.pvh_regs
        configure_vcpus(machine, topology, entry_regs(plan.entry))
        machine.mark("loaded")
    finally:
        os.close(kernel_fd)


def create_vm(machine: Machine, apic_ids: list[int]) -> None:
    """KVM, guest RAM and its slots, then the interrupt controllers, then the vCPUs."""
    config = machine.config
    kvm = open_kvm()
    try:
        check_vcpu_count(kvm, config.cpu_count)
        machine.vm = Vm(kvm)
    except BaseException:
        kvm.close()
        raise
    machine.memory = allocate(config.memory, machine.progress)
    machine.vm.map_memory(machine.memory)
    machine.vm.create_irqchip(apic_ids)
    machine.vm.create_vcpus(apic_ids)
    for fd in machine.vm.vcpu_fds:
        machine.vcpus.append(Vcpu(fd, machine.pio, machine.mmio, machine.outcome_fd))


def attach_platform(machine: Machine, serial: HostConsole) -> None:
    """The legacy ports and the GED."""
    irq = machine.vm.irq
    pio = machine.pio
    low = min(machine.memory.size, layout.LOW_RAM_MAX)
    machine.uart = Uart(serial.port, irq.line(layout.COM1_GSI).fd)
    pio.attach(layout.COM1_PORT, layout.COM1_SIZE, machine.uart, "COM1")
    pio.attach(layout.I8042_PORT, layout.I8042_SIZE, I8042(), "i8042")
    rtc = Rtc(low, machine.memory.size - low)
    pio.attach(layout.CMOS_PORT, layout.CMOS_SIZE, rtc, "CMOS")
    pio.attach(layout.POST_PORT, 1, PostPort(), "POST code port")
    pio.attach(layout.FIRMWARE_DEBUG_PORT, 1, FirmwareDebugPort(), "firmware debug port")
    machine.pvpanic = PvPanic()
    pio.attach(layout.PVPANIC_PORT, 1, machine.pvpanic, "panic port")
    pio.attach(layout.ACPI_PORT, layout.ACPI_PORT_SIZE, AcpiRegisters(), "ACPI registers")
    pio.attach(layout.PM_TIMER_PORT, layout.PM_TIMER_SIZE, PmTimer(), "PM timer")
    machine.ged = Ged(irq.line(layout.GED_GSI))
    machine.mmio.attach(ged_gpa(), 1, machine.ged, "GED")


def ged_gpa() -> int:
    """The GED's one register, in the last page of the VMM's own MMIO area."""
    return layout.platform_mmio_gpa(phys_bits()) + layout.PLATFORM_MMIO_SIZE - layout.PAGE_SIZE


def phys_bits() -> int:
    """Physical address bits the guest sees."""
    if host_cpuid(ADDRESS_BITS_LEAF & ~0xFF)[0] < ADDRESS_BITS_LEAF:
        return ADDRESS_BITS_DEFAULT
    return min(host_cpuid(ADDRESS_BITS_LEAF)[0] & 0xFF, layout.PHYS_BITS_MAX)


def attach_pci(machine: Machine) -> None:
    """The host bridge with both configuration mechanisms and the windows for BARs."""
    window64 = layout.mmio64_window(machine.memory.regions, phys_bits())
    window32 = (layout.MMIO32_GPA, layout.MMIO32_SIZE)
    io_window = (layout.PCI_IO_PORT, layout.PCI_IO_SIZE)
    machine.pci = PciRoot(machine.mmio, [window32, window64], machine.pio, io_window)
    machine.window32 = layout.TopDownAllocator("32-bit window", *window32)
    machine.io_window = layout.TopDownAllocator("port window", *io_window)
    machine.window64 = layout.TopDownAllocator("64-bit window", *window64)
    machine.pio.attach(
        layout.PCI_CONFIG_PORT, layout.PCI_CONFIG_SIZE, machine.pci.ports, "PCI configuration"
    )
    machine.mmio.attach(layout.ECAM_GPA, layout.ECAM_SIZE, machine.pci.ecam, "ECAM")


def attach_virtio(machine: Machine, disks: Sequence[Disk], console: HostConsole) -> None:
    """Console in slot 1, disks from slot 2 in their order, then the random number generator."""
    memory = machine.memory
    machine.console = Console("console", memory, console.port, console.size())
    queues = min(machine.config.cpu_count, DISK_QUEUES_MAX)
    devices: list[VirtioDevice] = [machine.console]
    devices += [Block(f"disk{n}", memory, disk, queues) for n, disk in enumerate(disks)]
    devices.append(Rng("rng", memory))
    if len(devices) >= layout.PCI_SLOTS:
        raise HostError(
            f"{len(disks)} disks need more than the {layout.PCI_SLOTS} slots of the PCI bus",
            f"use at most {layout.PCI_SLOTS - 3}",
        )
    for slot, device in enumerate(devices, 1):
        vectors = machine.vm.irq.msi_vectors(len(device.queue_sizes) + 1)
        function = VirtioPciFunction(device, vectors, machine.vm.doorbells)
        bar = function.bar
        window = machine.window64 if bar.wide else machine.window32
        alignment = max(bar.size, WIDE_BAR_ALIGNMENT) if bar.wide else bar.size
        bar.value = window.allocate(bar.size, alignment)
        machine.pci.add(slot, function)
        machine.virtio.append(function)
        function.enable()


def attach_passthrough(machine: Machine) -> None:
    """The host's devices that the guest gets, in the slots behind the virtio devices."""
    from devices.vfio import gpudirect
    from devices.vfio.domain import open_domain
    from devices.vfio.kernel import VfioKernel
    from devices.vfio.passthrough import PassthroughFunction
    from devices.vfio.peers import PeerToPeer
    from vmm.host.pci import find_devices

    vm = machine.vm
    found = find_devices(machine.config.devices)
    kernel = machine.vfio_kernel or VfioKernel()
    machine.domain = domain = open_domain(
        vm.fd.create_vfio_device(), kernel, found, machine.progress
    )
    peers = PeerToPeer(domain, "" if len(found) > 1 else "a single device has no peer")
    cliques = gpudirect.choose(
        machine.config.gpudirect_clique, [host.bdf for host in found], peers.offered
    )
    for slot, host in enumerate(found, len(machine.virtio) + 1):
        if slot >= layout.PCI_SLOTS:
            raise HostError(
                f"{host.bdf} finds no slot: the PCI bus has {layout.PCI_SLOTS}",
                "use fewer devices or disks",
            )
        device = domain.open_device(host, machine.memory)
        gsi = layout.PCI_INTX_GSI + slot % layout.PCI_INTX_COUNT
        try:
            function = PassthroughFunction(
                host,
                device,
                vm.irq,
                gsi,
                vm.device_slots,
                peers,
                cliques.get(host.bdf),
            )
        except OSError as error:
            device.close()
            raise HostError(f"{host.bdf} fails: {error}", "see the kernel's log") from error
        except BaseException:
            device.close()
            raise
        machine.passthrough.append(function)
        place_bars(machine, function)
        machine.pci.add(slot, function)
        function.enable()
        log.info(f"{host.bdf} (IOMMU group {host.group}) in slot {slot}: {function.attach_ms} ms")


def place_bars(machine: Machine, function: PassthroughFunction) -> None:
    """Addresses for a device's BARs as a firmware would choose them, the largest first."""
    reachable = machine.domain.ranges if machine.domain is not None else []
    for bar in sorted(function.bars, key=lambda bar: -bar.size):
        window = machine.window64 if bar.wide else machine.window32
        # Where the IOMMU can map it: else other devices could not reach it.
        alignment, preferred = max(bar.size, layout.PAGE_SIZE), reachable
        if bar.space == "ports":
            window, alignment, preferred = machine.io_window, bar.size, []
        try:
            bar.value = window.allocate(bar.size, alignment, preferred)
        except ValueError as error:
            raise HostError(
                f"{function.bdf}: no place for BAR {bar.index} of {bar.size:#x} bytes: {error}",
                "pass fewer devices through",
            ) from None


def describe_platform(machine: Machine, apic_ids: list[int]) -> None:
    """ACPI and SMBIOS, last because they list what exists; and the boot GDT and IDT."""
    memory = machine.memory
    window64 = layout.mmio64_window(memory.regions, phys_bits())
    memory.write(layout.RSDP_GPA, build_acpi(AcpiSpec(apic_ids, window64, ged_gpa())))
    memory.write(layout.SMBIOS_GPA, build_smbios())
    memory.write(layout.BOOT_GDT_GPA, regs.gdt_bytes())
    memory.write(layout.BOOT_IDT_GPA, regs.idt_bytes())


def configure_vcpus(machine: Machine, topology: cpuid.Topology, entry: dict[str, int]) -> None:
    """CPUID, MSRs, registers and LAPIC of every vCPU. Only number 0 runs until it wakes others."""
    common = cpuid.common_cpuid(
        machine.vm.kvm.get_supported_cpuid(),
        host_cpuid,
        phys_bits=phys_bits(),
        tsc_khz=machine.vcpus[0].fd.get_tsc_khz(),
        topology=topology,
    )
    state = BootState(
        msr.boot_msrs(), entry, regs.boot_sregs(), (regs.FCW_DEFAULT, regs.MXCSR_DEFAULT)
    )
    for vcpu in machine.vcpus:
        vcpu.configure(cpuid.vcpu_cpuid(common, vcpu.index, topology), state)
        vcpu.patch_lapic(lapic.set_lint)
