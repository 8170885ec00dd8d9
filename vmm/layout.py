"""The guest's physical address map: every magic address once, with its reason.

It is Cloud Hypervisor's platform, so that the firmware, kernels and images made for it boot
unmodified. Sizes are in bytes, ends are exclusive. Pure: imports nothing.
"""

from __future__ import annotations

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
PAGE_SIZE = 4 * KIB

# --- Below 1 MiB: what the boot protocols read ---
# BIOS data area: real-mode segment of the EBDA, where scanners look for the RSDP.
EBDA_POINTER_GPA = 0x40E
BOOT_GDT_GPA = 0x500
BOOT_IDT_GPA = 0x520
PVH_START_INFO_GPA = 0x6000
PVH_MODULES_GPA = 0x6040
# The PVH memory map, or Linux's zero page for a bzImage; never both.
PVH_MEMMAP_GPA = 0x7000
ZERO_PAGE_GPA = 0x7000
# What a Multiboot kernel is told, in the same places; never beside the others.
MULTIBOOT_INFO_GPA = 0x6000
MULTIBOOT_MODULES_GPA = 0x6080
MULTIBOOT_NAME_GPA = 0x60C0
MULTIBOOT_MEMMAP_GPA = 0x7000
BOOT_STACK_GPA = 0x8FF0
CMDLINE_GPA = 0x20000
CMDLINE_MAX = 0x10000
# End of conventional RAM; the RSDP lies exactly here, the other ACPI tables behind it.
LOW_RAM_END = 0xA0000
RSDP_GPA = LOW_RAM_END
SMBIOS_GPA = 0xF0000
# What strings may take of the 64 KiB up to 1 MiB, beside what is always there.
SMBIOS_TEXT_MAX = 60 << 10
# A GUID of this guest's alone, in a page of its own; a fork gets another, and is told by ACPI.
VMGENID_GPA = 0xFF000
VMGENID_SIZE = 16
BIOS_END = 0x100000

# --- 1 MiB to 4 GiB ---
HIGH_RAM_GPA = 0x100000
# RAM below 4 GiB ends here at the latest; the rest of the guest's RAM starts at 4 GiB.
LOW_RAM_MAX = 3 * GIB
MMIO32_GPA = 0xC0000000
MMIO32_SIZE = 640 * MIB
MMIO32_END = MMIO32_GPA + MMIO32_SIZE
ECAM_GPA = 0xE8000000
ECAM_SIZE = 256 * MIB
# One bus of 32 slots, 8 functions, 4 KiB each.
ECAM_BUS_SIZE = 1 * MIB
# Pages that KVM on Intel hosts needs inside the guest's address space.
TSS_GPA = 0xF8000000
IDENTITY_MAP_GPA = 0xF8003000
IOAPIC_GPA = 0xFEC00000
LAPIC_GPA = 0xFEE00000

# --- Above 4 GiB ---
HIGH_MEMORY_GPA = 4 * GIB
# The guest never sees more physical address bits than this (64 TiB: room for eight large GPUs).
PHYS_BITS_MAX = 46
# Left free under the top of the address space, then the VMM's own MMIO registers.
TOP_RESERVED = 64 * KIB
PLATFORM_MMIO_SIZE = 1 * MIB

# --- Ports ---
COM1_PORT = 0x3F8
COM1_SIZE = 8
I8042_PORT = 0x61
I8042_SIZE = 4
CMOS_PORT = 0x70
CMOS_SIZE = 2
POST_PORT = 0x80
FIRMWARE_DEBUG_PORT = 0x402
# Where QEMU's ISA device is; guests find it by ACPI.
PVPANIC_PORT = 0x505
ACPI_PORT = 0x600
ACPI_PORT_SIZE = 4
PM_TIMER_PORT = 0x608
PM_TIMER_SIZE = 4
PCI_CONFIG_PORT = 0xCF8
PCI_CONFIG_SIZE = 8
# Where ports of PCI devices may lie: above everything that has a fixed place.
PCI_IO_PORT = 0x1000
PCI_IO_SIZE = 0xF000

# --- Interrupts (GSI n is IOAPIC pin n up to 23; MSI routes are above) ---
IOAPIC_PINS = 24
COM1_GSI = 4
PCI_INTX_GSI = 5
PCI_INTX_COUNT = 8
GED_GSI = 13
MSI_GSI_FIRST = IOAPIC_PINS
GSI_MAX = 4096

# --- PCI slots, in the order of creation ---
PCI_SLOTS = 32
# Request queues of a disk: one for each vCPU, up to the first where nothing is said of it, and
# never more than the second.
DISK_QUEUES = 4
DISK_QUEUES_MAX = 64


def ram_regions(size: int) -> list[tuple[int, int]]:
    """Where ``size`` bytes of RAM lie: (gpa, size) below 3 GiB, and the rest from 4 GiB on."""
    low = min(size, LOW_RAM_MAX)
    regions = [(0, low)]
    if size > low:
        regions.append((HIGH_MEMORY_GPA, size - low))
    return regions


def disk_queues(vcpus: int, wanted: int | None) -> int:
    """How many request queues a disk has; more than vCPUs would have no user."""
    return min(vcpus, wanted or DISK_QUEUES)


def memory_map(regions: list[tuple[int, int]]) -> list[tuple[int, int, bool]]:
    """The map told to the guest (PVH memmap and e820 alike): (gpa, size, usable)."""
    low_end = regions[0][1]
    entries = [(0, LOW_RAM_END, True), (HIGH_RAM_GPA, low_end - HIGH_RAM_GPA, True)]
    entries += [(gpa, size, True) for gpa, size in regions[1:]]
    # Linux accepts ECAM only when the firmware reserved it.
    entries.append((ECAM_GPA, ECAM_SIZE, False))
    return entries


def platform_mmio_gpa(phys_bits: int) -> int:
    """Start of the VMM's own registers: the last MiB under the reserved top."""
    return (1 << phys_bits) - TOP_RESERVED - PLATFORM_MMIO_SIZE


def ged_gpa(phys_bits: int) -> int:
    """The GED's one register, in the last page of the VMM's own MMIO area."""
    return platform_mmio_gpa(phys_bits) + PLATFORM_MMIO_SIZE - PAGE_SIZE


def mmio64_window(regions: list[tuple[int, int]], phys_bits: int) -> tuple[int, int]:
    """(gpa, size) of the window for 64-bit BARs: from the end of RAM up to the VMM's registers."""
    start = HIGH_MEMORY_GPA
    if len(regions) > 1:
        start = regions[-1][0] + regions[-1][1]
    return start, platform_mmio_gpa(phys_bits) - start


class TopDownAllocator:
    """Gives out ranges of a window from its top downwards, naturally placed; never takes back.

    Used while a machine is built; afterwards the guest decides where its BARs lie.
    """

    def __init__(self, name: str, start: int, size: int) -> None:
        self.name = name
        self.start = start
        self.top = start + size

    def allocate(
        self, size: int, alignment: int, preferred: list[tuple[int, int]] | tuple[()] = ()
    ) -> int:
        """The highest free address for ``size`` bytes; ValueError when the window is full.

        ``preferred``: (first, last) of ranges in one of which it shall lie, where that is possible.
        """
        ends = sorted([last + 1 for _, last in preferred if last < self.top], reverse=True)
        places = [(top - size) // alignment * alignment for top in (self.top, *ends)]
        places = [place for place in places if place >= self.start]
        if not places:
            raise ValueError(f"{self.name} is full: no room for {size:#x} bytes more")
        inside = [
            place
            for place in places
            if any(first <= place and place + size - 1 <= last for first, last in preferred)
        ]
        self.top = inside[0] if inside else places[0]
        return self.top
