"""The story of a VM, top to bottom: what it is made of and in which order it is put together."""

from __future__ import annotations

import os
import time

from devices.acpi_pm import AcpiRegisters, Ged
from devices.debugcon import FirmwareDebugPort
from devices.failure import on_bus_error
from devices.i8042 import I8042
from devices.pci.root import PciRoot
from devices.pci.windows import BarWindows
from devices.pvpanic import PvPanic
from devices.rtc import Rtc
from devices.virtio.block import Block
from devices.virtio.console import Console
from devices.virtio.pci import VirtioPciFunction
from devices.virtio.rng import Rng
from vmm import layout
from vmm._native.console.uart import Uart
from vmm._native.host.posix import host_cpuid
from vmm._native.kvm.bus import Bus
from vmm._native.kvm.vcpu import pack_cpuid
from vmm._native.ports.pmtimer import PmTimer
from vmm._native.ports.postport import PostPort
from vmm.acpi.spec import AcpiSpec
from vmm.acpi.tables import build_acpi
from vmm.boot.image import BZIMAGE, MULTIBOOT, PVH
from vmm.boot.kernel import check_payload, load_guest, open_plan
from vmm.boot.smbios import build_smbios
from vmm.errors import HostError
from vmm.host.kvm import check_vcpu_count, open_kvm
from vmm.light.teardown import try_all
from vmm.log.hub import get_logger
from vmm.memory import allocate, memory_status, no_progress
from vmm.vcpu import Vcpu, configure_all, start_all
from vmm.vm import Vm
from vmm.x86 import cpuid, lapic, msr, regs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from devices.vfio.attach import Passthrough
    from devices.vfio.kernel import VfioKernel
    from devices.vfio.passthrough import PassthroughFunction
    from devices.virtio.device import VirtioDevice
    from vmm._native.memory.guestmem import GuestMemory
    from vmm.host.console import HostConsole
    from vmm.host.disk import Disk
    from vmm.irq import IrqLine
    from vmm.kept import Kept
    from vmm.memory import Progress
    from vmm.settings.config import Config

log = get_logger(__name__)

# One that does not leave the guest costs a tenth of a second, and the reply has to fit.
SNAPSHOTS_MAX = 16
ENTRY_REGS = {
    PVH: regs.pvh_regs,
    BZIMAGE: regs.bzimage_regs,
    MULTIBOOT: regs.multiboot_regs,
}


def build_machine(
    config: Config,
    disks: Sequence[Disk],
    console: HostConsole,
    serial: HostConsole,
    cache_directory: str | None = None,
    progress: Progress = no_progress,
    vfio_kernel: VfioKernel | None = None,
    more: Callable[[Machine], None] | None = None,
    oem_strings: Sequence[str] = (),
    kept: Kept | None = None,
) -> Machine:
    """Build a machine by ``config``, paused at its entry point. Raises VmmError.

    ``disks`` are the opened and locked images in the order of their slots; they and the consoles
    outlive the machine, so that a guest's reboot can use them again. ``progress`` hears of the
    steps that take long with much RAM. ``vfio_kernel`` opens VFIO's files; None: the kernel's own.
    ``more`` adds devices of somebody else's, behind ours. ``oem_strings`` are the guest's to read
    in SMBIOS. ``kept``: at a reboot, what is used in place of files that cannot be opened again.
    """
    machine = Machine(config, progress, vfio_kernel)
    machine.kept = kept
    try:
        _build(machine, disks, console, serial, cache_directory, more, oem_strings)
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
    more: Callable[[Machine], None] | None,
    oem_strings: Sequence[str],
) -> None:
    config = machine.config
    kept = machine.kept
    opened = -1 if kept is None else kept.kernel
    kernel_fd, plan = open_plan(config.kernel_path, cache_directory, opened)
    try:
        check_payload(
            plan, config.kernel_path, config.cmdline, config.initramfs_path, config.memory.size
        )
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
        if more is not None:
            more(machine)
        load_guest(
            plan, kernel_fd, config.kernel_path, machine.memory, config.initramfs_path,
            config.cmdline, -1 if kept is None else kept.initramfs,
        )  # fmt: skip
        describe_platform(machine, apic_ids, oem_strings)
        configure_vcpus(machine, topology, ENTRY_REGS[plan.kind](plan.entry))
        machine.mark("loaded")
    finally:
        os.close(kernel_fd)


def create_vm(machine: Machine, apic_ids: list[int], memory: GuestMemory | None = None) -> None:
    """KVM, guest RAM and its slots, then the interrupt controllers, then the vCPUs.

    ``memory`` that is there already is the machine's from here on. None: as configured.
    """
    if memory is not None:
        machine.memory = memory
    config = machine.config
    kvm = open_kvm(-1 if machine.kept is None else machine.kept.kvm)
    try:
        check_vcpu_count(kvm, config.cpu_count)
        machine.vm = Vm(kvm)
    except BaseException:
        kvm.close()
        raise
    if memory is None:
        machine.memory = allocate(config.memory, machine.progress, machine.kept)
    machine.vm.map_memory(machine.memory)
    machine.vm.create_irqchip(apic_ids)
    if config.placement is not None:
        from vmm.host import placement

        placement.enable_exits(kvm, machine.vm.fd, config.placement)
    machine.vm.create_vcpus(apic_ids)
    for fd in machine.vm.vcpu_fds:
        machine.vcpus.append(Vcpu(fd, machine.pio, machine.mmio, machine.outcome_fd))
    if config.placement is not None:
        for vcpu in machine.vcpus:
            vcpu.processors = placement.vcpu_processors(config.placement, vcpu.index)


def attach_platform(machine: Machine, serial: HostConsole) -> None:
    """The legacy ports and the GED."""
    irq = machine.vm.irq
    pio = machine.pio
    low = min(machine.memory.size, layout.LOW_RAM_MAX)
    machine.uart_line = irq.line(layout.COM1_GSI)
    machine.uart = Uart(serial.port, machine.uart_line.fd)
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
    machine.mmio.attach(layout.ged_gpa(machine.phys_bits), 1, machine.ged, "GED")


def attach_pci(machine: Machine) -> None:
    """The host bridge with both configuration mechanisms and the windows for BARs."""
    windows = BarWindows(layout.mmio64_window(machine.memory.regions, machine.phys_bits))
    machine.bar_windows = windows
    machine.pci = PciRoot(machine.mmio, windows.memory, machine.pio, windows.ports)
    machine.pio.attach(
        layout.PCI_CONFIG_PORT,
        layout.PCI_CONFIG_SIZE,
        machine.pci.ports.target,
        "PCI configuration",
    )
    machine.mmio.attach(layout.ECAM_GPA, layout.ECAM_SIZE, machine.pci.ecam.target, "ECAM")


def attach_virtio(machine: Machine, disks: Sequence[Disk], console: HostConsole) -> None:
    """Console in slot 1, disks from slot 2 in their order, then the random number generator."""
    memory = machine.memory
    machine.console = Console("console", memory, console.port, console.size())
    devices: list[VirtioDevice] = [machine.console]
    for number, disk in enumerate(disks):
        queues = layout.disk_queues(machine.config.cpu_count, disk.queues)
        devices.append(Block(f"disk{number}", memory, disk, queues))
    devices.append(Rng("rng", memory))
    if len(devices) >= layout.PCI_SLOTS:
        raise HostError(
            f"{len(disks)} disks need more than the {layout.PCI_SLOTS} slots of the PCI bus",
            f"use at most {layout.PCI_SLOTS - 3}",
        )
    for slot, device in enumerate(devices, 1):
        vectors = machine.vm.irq.msi_vectors(len(device.queue_sizes) + 1)
        function = VirtioPciFunction(device, vectors, machine.vm.doorbells)
        machine.virtio.append(function)
        machine.bar_windows.place_emulated(function.bar)
        machine.pci.add(slot, function)
        function.enable()


def attach_passthrough(machine: Machine) -> None:
    """The host's devices that the guest gets, in the slots behind the virtio devices."""
    from devices.vfio.attach import Passthrough
    from devices.vfio.kernel import VfioKernel
    from vmm.host.pci import find_devices

    config, vm = machine.config, machine.vm
    found = find_devices(config.devices)
    machine.passthrough = Passthrough(
        vm.fd.create_vfio_device(), vm.irq, vm.device_slots, machine.memory, machine.pci,
        machine.bar_windows,
    )  # fmt: skip
    kernel = machine.vfio_kernel or VfioKernel()
    first_slot = len(machine.virtio) + 1
    machine.passthrough.attach(found, kernel, config.gpudirect_clique, first_slot, machine.progress)


def describe_platform(machine: Machine, apic_ids: list[int], oem_strings: Sequence[str]) -> None:
    """ACPI and SMBIOS, last because they list what exists; and the boot GDT and IDT."""
    memory = machine.memory
    window64 = layout.mmio64_window(memory.regions, machine.phys_bits)
    ged_gpa = layout.ged_gpa(machine.phys_bits)
    memory.write(layout.RSDP_GPA, build_acpi(AcpiSpec(apic_ids, window64, ged_gpa)))
    memory.write(layout.SMBIOS_GPA, build_smbios(strings=oem_strings))
    memory.write(layout.VMGENID_GPA, os.urandom(layout.VMGENID_SIZE))
    memory.write(layout.BOOT_GDT_GPA, regs.gdt_bytes())
    memory.write(layout.BOOT_IDT_GPA, regs.idt_bytes())


def configure_vcpus(machine: Machine, topology: cpuid.Topology, entry: dict[str, int]) -> None:
    """CPUID and MSRs of every vCPU, registers and LAPIC of number 0: the others wait for INIT."""
    common = cpuid.common_cpuid(
        machine.vm.kvm.get_supported_cpuid(),
        host_cpuid,
        phys_bits=machine.phys_bits,
        tsc_khz=machine.vcpus[0].fd.get_tsc_khz(),
        topology=topology,
    )
    if machine.config.placement is not None:
        common = cpuid.placed(common, host_cpuid, machine.config.placement)
    tables = cpuid.vcpu_tables(common, topology, pack_cpuid)
    configure_all(machine.vcpus, tables, msr.boot_msrs())
    machine.vcpus[0].set_entry(entry, regs.boot_sregs(), (regs.FCW_DEFAULT, regs.MXCSR_DEFAULT))
    machine.vcpus[0].patch_lapic(lapic.set_lint)


class Machine:
    """A built VM. Everything here belongs to the control thread.

    ``outcome_fd`` becomes readable when a vCPU has left the guest for good; run/outcome.py tells
    why. close() ends the vCPUs, the devices and the kernel's side, in this order, and may be
    called in any state.
    """

    def __init__(
        self,
        config: Config,
        progress: Progress = no_progress,
        vfio_kernel: VfioKernel | None = None,
    ) -> None:
        if config.placement is not None:
            from vmm.host.placement import placed

            config = placed(config)
        self.config = config
        self.progress = progress
        self.vfio_kernel = vfio_kernel
        self.kept: Kept | None = None
        self.outcome_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.pio = Bus("ports", on_bus_error)
        self.mmio = Bus("MMIO", on_bus_error)
        self.vcpus: list[Vcpu] = []
        self.virtio: list[VirtioPciFunction] = []
        self.passthrough: Passthrough | None = None
        self.phases: dict[str, float] = {}
        self.phys_bits = cpuid.guest_phys_bits(host_cpuid)
        self._started = time.monotonic()
        self._closed = False
        # Set while building, in this order.
        self.memory: GuestMemory
        self.vm: Vm
        self.pci: PciRoot
        self.bar_windows: BarWindows
        self.ged: Ged
        self.pvpanic: PvPanic
        self.uart: Uart
        self.uart_line: IrqLine
        self.console: Console

    def mark(self, phase: str) -> None:
        """Remember when a phase of the start ended, in ms since its beginning."""
        self.phases[phase] = round((time.monotonic() - self._started) * 1000, 3)

    def start(self, first: Callable[[], None] | None = None) -> None:
        """Let the guest run, once ``first`` is done."""
        start_all(self.vcpus, first)
        self.mark("running")
        self.memory.settle()

    def power_button(self) -> None:
        """Press the ACPI power button."""
        self.ged.power_button()

    def resize(self, columns: int, rows: int) -> None:
        """Tell the guest the size of its console."""
        self.console.resize(columns, rows)

    def stop_vcpus(self) -> None:
        """End all vCPU threads; the guest executes nothing more."""
        steps = [*[vcpu.kick for vcpu in self.vcpus], *[vcpu.join for vcpu in self.vcpus]]
        for error in try_all(steps):
            log.warning(f"a vCPU did not end as it should: {error}")

    def status(self) -> dict[str, object]:
        """Facts for `status`: memory, vCPUs, disks and devices, exits, phases of the start."""
        return {
            "memory": memory_status(self.config.memory, self.memory),
            "placement": self.config.placement and self.config.placement.status(),
            "vcpus": [vcpu.status() for vcpu in self.vcpus],
            "devices": [f.status() for f in self.functions()],
            "exits": self.exits(),
            "boot": dict(self.phases),
        }

    def exits(self) -> dict[str, int]:
        """Exits so far by their kind, of all vCPUs together."""
        counts: dict[str, int] = {}
        for vcpu in self.vcpus:
            for name, count in vcpu.loop.counters().items():
                counts[name] = counts.get(name, 0) + count
        return counts

    def functions(self) -> list[VirtioPciFunction | PassthroughFunction]:
        """Every PCI function of the guest, in the order of slots."""
        return [*self.virtio, *self.passed_through()]

    def passed_through(self) -> list[PassthroughFunction]:
        """The functions that are devices of the host's."""
        return self.passthrough.functions if self.passthrough is not None else []

    def activity(self) -> int:
        """Requests that the devices served so far: it grows while a driver works with them."""
        return sum([function.device.activity() for function in self.virtio])

    def snapshots(self) -> list[str]:
        """Where the first vCPUs are, as text; each is paused for a moment. Control thread only."""
        return [vcpu.snapshot(self.memory) for vcpu in self.vcpus[:SNAPSHOTS_MAX]]

    def close(self) -> None:
        """Take the machine apart in reverse order of building; idempotent, and never fails.

        Every step is tried: what cannot be closed is told in the log, and ends with the process.
        """
        if self._closed:
            return
        self._closed = True
        steps: list[Callable[[], object]] = [self.stop_vcpus]
        if self.passthrough is not None:
            steps.append(self.passthrough.close)
        steps += [function.close for function in reversed(self.virtio)]
        if hasattr(self, "uart"):
            steps.append(self.uart.close)
        if hasattr(self, "vm"):
            steps += [self.vm.close, self.vm.kvm.close]
        if hasattr(self, "memory"):
            steps.append(self.memory.close)
        steps.append(lambda: os.close(self.outcome_fd))
        for error in try_all(steps):
            log.warning(f"taking the machine apart: {error!r}")
