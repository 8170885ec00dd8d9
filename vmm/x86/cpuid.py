"""What CPUID tells the guest: KVM's list, edited for one consistent topology.

Source: Intel SDM volume 2 (CPUID); AMD APM volume 3, appendix E; Linux
Documentation/virt/kvm/x86/cpuid.rst. The edits are those of Cloud Hypervisor's platform.
"""

from __future__ import annotations

import struct

from vmm.layout import PHYS_BITS_MAX
from vmm.light.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm._native.kvm.vcpu import CpuidEntry
    from vmm.settings.placement import Placement

SIGNIFICANT_INDEX = 1  # KVM_CPUID_FLAG_SIGNIFCANT_INDEX
HYPERVISOR_BASE = 0x40000000
HYPERVISOR_FEATURES = 0x40000001
HYPERVISOR_TIMING = 0x40000010
MSI_EXT_DEST_ID = 1 << 15
HINTS_REALTIME = 1
MWAIT_LEAF = 5
MONITOR_MWAIT = 1 << 3
LAPIC_BUS_KHZ = 1_000_000
INVARIANT_TSC = 1 << 8
AMX_LEAVES = (0x1D, 0x1E)
LEVEL_SMT = 1 << 8
LEVEL_CORE = 2 << 8
LEVEL_DIE = 5 << 8
AMD_VENDORS = (b"AuthenticAMD", b"HygonGenuine")
TOPOLOGY_LEAVES = (0xB, 0x1F)
ADDRESS_BITS_LEAF = 0x80000008
EXTENDED_APIC_ID = 0x8000001E
APIC_ID_LEAVES = (1, *TOPOLOGY_LEAVES, EXTENDED_APIC_ID)
# struct kvm_cpuid2: two words, then ten for each entry, of which the fourth is eax.
ENTRIES_AT, ENTRY_BYTES, EAX_AT = 8, 40, 12


def guest_phys_bits(host_cpuid: Callable[[int], tuple[int, int, int, int]]) -> int:
    """Physical address bits that the guest sees: the host's, as far as the layout has use.

    Every processor that KVM runs on has the leaf; each question costs where a hypervisor answers.
    """
    return min(host_cpuid(ADDRESS_BITS_LEAF)[0] & 0xFF, PHYS_BITS_MAX)


def width(count: int) -> int:
    """Bits needed to number ``count`` things."""
    return (count - 1).bit_length()


class Topology(Record):
    """One package of ``dies`` with ``cores`` each of ``threads`` each."""

    __slots__ = ("cores", "dies", "threads")
    threads: int
    cores: int
    dies: int

    def __init__(self, threads: int, cores: int, dies: int) -> None:
        self._set(threads=threads, cores=cores, dies=dies)

    @property
    def count(self) -> int:
        """All logical CPUs."""
        return self.threads * self.cores * self.dies

    @property
    def thread_width(self) -> int:
        """Bits of the thread number in an APIC id."""
        return width(self.threads)

    @property
    def core_width(self) -> int:
        """Bits of thread and core."""
        return self.thread_width + width(self.cores)

    @property
    def package_width(self) -> int:
        """Bits of thread, core and die."""
        return self.core_width + width(self.dies)

    def apic_id(self, index: int) -> int:
        """APIC id of the CPU with this index."""
        thread = index % self.threads
        core = index // self.threads % self.cores
        die = index // (self.threads * self.cores)
        return thread | core << self.thread_width | die << self.core_width

    def apic_ids(self) -> list[int]:
        """APIC ids of all CPUs, in order."""
        return [self.apic_id(index) for index in range(self.count)]


def flat_topology(cpu_count: int) -> Topology:
    """One thread a core, all cores in one die: APIC id = index."""
    return Topology(1, cpu_count, 1)


def _clear(value: int, *bits: int) -> int:
    for bit in bits:
        value &= ~(1 << bit)
    return value


def is_amd(entries: list[CpuidEntry]) -> bool:
    """True for AMD's (and Hygon's) leaves."""
    for function, _, _, _, ebx, ecx, edx in entries:
        if function == 0:
            vendor = b"".join([r.to_bytes(4, "little") for r in (ebx, edx, ecx)])
            return vendor in AMD_VENDORS
    return False


def common_cpuid(
    supported: list[CpuidEntry],
    host: Callable[[int, int], tuple[int, int, int, int]],
    *,
    phys_bits: int,
    tsc_khz: int,
    topology: Topology,
) -> list[CpuidEntry]:
    """The leaves all vCPUs share. ``host`` executes CPUID here; ``tsc_khz`` is the guest's."""
    amd = is_amd(supported)
    invariant = any(e[0] == 0x80000007 and e[6] & INVARIANT_TSC for e in supported)
    entries = []
    for entry in supported:
        function = entry[0]
        if function in AMX_LEAVES or function in TOPOLOGY_LEAVES or function == HYPERVISOR_TIMING:
            continue
        entries.append(_edit(entry, host, phys_bits, topology, amd, invariant))
    if invariant and any(e[0] == HYPERVISOR_BASE for e in entries):
        # TSC and LAPIC timer frequencies, so that the guest calibrates neither.
        entries.append((HYPERVISOR_TIMING, 0, 0, tsc_khz, LAPIC_BUS_KHZ, 0, 0))
    return entries


def _edit(
    entry: CpuidEntry,
    host: Callable[[int, int], tuple[int, int, int, int]],
    phys_bits: int,
    topology: Topology,
    amd: bool,
    invariant: bool,
) -> CpuidEntry:
    function, index, flags, eax, ebx, ecx, edx = entry
    if function == 0:
        eax = max(eax, 0xB) if amd else max(eax, 0x1F)
    elif function == 1:
        ecx |= 1 << 31 | 1 << 24
        edx |= 1 << 12
    elif function == 4 and eax & 0x1F:
        eax = _share(eax, topology)
        # Bits 31..26 number the cores of the package, as far as six bits do.
        cores = 1 << topology.package_width - topology.thread_width
        eax = eax & 0x03FFFFFF | (min(cores, 64) - 1) << 26
    elif function == 7 and index == 0:
        edx = _clear(edx, 22, 24, 25)
    elif function == 7 and index == 1:
        eax = _clear(eax, 21)
        edx = _clear(edx, 8)
    elif function == HYPERVISOR_BASE and invariant:
        eax = max(eax, HYPERVISOR_TIMING)
    elif function == HYPERVISOR_FEATURES:
        eax |= MSI_EXT_DEST_ID
    elif 0x80000002 <= function <= 0x80000004:
        eax, ebx, ecx, edx = host(function, 0)
    elif function in (0x80000005, 0x80000006) and not (eax | ebx | ecx | edx):
        eax, ebx, ecx, edx = host(function, 0)
    elif function == 0x80000001 and amd:
        # CmpLegacy and TopologyExtensions: leaf 0x8000001e is meaningful.
        ecx = ecx | 1 << 22 | (1 << 1 if topology.count > 1 else 0)
    elif function == 0x80000008:
        eax = eax & 0xFF00FF00 | phys_bits | phys_bits << 16
        if amd:
            ecx = topology.package_width << 12 | topology.count - 1 & 0xFF
    elif function == 0x8000001D and eax & 0x1F:
        eax = _share(eax, topology)
    return function, index, flags, eax, ebx, ecx, edx


def _share(eax: int, topology: Topology) -> int:
    """Bits 25..14: a cache is shared by no more logical CPUs than one die has."""
    sharing = (eax >> 14 & 0xFFF) + 1
    most = 1 << topology.core_width
    if eax >> 5 & 7 < 3:
        # Levels 1 and 2 belong to one core.
        most = 1 << topology.thread_width
    return eax & ~(0xFFF << 14) | (min(sharing, most, 0x1000) - 1) << 14


def placed(
    common: list[CpuidEntry],
    host: Callable[[int, int], tuple[int, int, int, int]],
    placement: Placement,
) -> list[CpuidEntry]:
    """The same, and what a guest is told that has processors of its own.

    Source: Documentation/virt/kvm/x86/cpuid.rst (KVM_HINTS_REALTIME); SDM 2A, CPUID, leaf 5.
    """
    entries = []
    for function, index, flags, eax, ebx, ecx, edx in common:
        if function == HYPERVISOR_FEATURES and placement.realtime:
            edx |= HINTS_REALTIME
        if "mwait" in placement.exits and function == 1:
            ecx |= MONITOR_MWAIT
        if "mwait" in placement.exits and function == MWAIT_LEAF:
            eax, ebx, ecx, edx = host(function, 0)
        entries.append((function, index, flags, eax, ebx, ecx, edx))
    return entries


def vcpu_cpuid(common: list[CpuidEntry], index: int, topology: Topology) -> list[CpuidEntry]:
    """The leaves of one vCPU: the common ones with its APIC id in them."""
    apic_id = topology.apic_id(index)
    entries = list(common)
    for at, entry in enumerate(common):
        if entry[0] == 1 or entry[0] == EXTENDED_APIC_ID:
            entries[at] = _with_apic_id(entry, apic_id, topology)
    return entries + _extended_topology(topology, apic_id, is_amd(common))


def vcpu_tables(
    common: list[CpuidEntry], topology: Topology, pack: Callable[[list[CpuidEntry]], bytes]
) -> list[bytes]:
    """pack(vcpu_cpuid()) of every vCPU: packed once, the others differ in a few words."""
    first = vcpu_cpuid(common, 0, topology)
    places = [at for at, entry in enumerate(first) if entry[0] in APIC_ID_LEAVES]
    own = [first[at] for at in places if first[at][0] not in TOPOLOGY_LEAVES]
    amd = is_amd(common)
    table = bytearray(pack(first))
    tables = [bytes(table)]
    for index in range(1, topology.count):
        apic_id = topology.apic_id(index)
        entries = [_with_apic_id(entry, apic_id, topology) for entry in own]
        entries += _extended_topology(topology, apic_id, amd)
        for at, entry in zip(places, entries, strict=True):
            struct.pack_into("<4I", table, ENTRIES_AT + ENTRY_BYTES * at + EAX_AT, *entry[3:])
        tables.append(bytes(table))
    return tables


def _with_apic_id(entry: CpuidEntry, apic_id: int, topology: Topology) -> CpuidEntry:
    function, sub, flags, eax, ebx, ecx, edx = entry
    if function == 1:
        ebx = ebx & 0xFFFF | (apic_id & 0xFF) << 24 | min(topology.count, 255) << 16
        edx = edx | 1 << 28 if topology.count > 1 else edx & ~(1 << 28)
    else:
        core_id = apic_id >> topology.thread_width
        eax = apic_id
        ebx = core_id & 0xFF | topology.threads - 1 << 8
        ecx = apic_id >> topology.core_width & 0xFF | topology.dies - 1 << 8
        edx = 0
    return function, sub, flags, eax, ebx, ecx, edx


def _extended_topology(topology: Topology, apic_id: int, amd: bool) -> list[CpuidEntry]:
    t, c, d = topology.threads, topology.cores, topology.dies
    thread, core, package = topology.thread_width, topology.core_width, topology.package_width
    flag = SIGNIFICANT_INDEX
    entries = [
        (0xB, 0, flag, thread, t, LEVEL_SMT, apic_id),
        (0xB, 1, flag, package, t * c * d, LEVEL_CORE | 1, apic_id),
        (0xB, 2, flag, 0, 0, 2, apic_id),
    ]
    if not amd:
        entries += [
            (0x1F, 0, flag, thread, t, LEVEL_SMT, apic_id),
            (0x1F, 1, flag, core, t * c, LEVEL_CORE | 1, apic_id),
            (0x1F, 2, flag, package, t * c * d, LEVEL_DIE | 2, apic_id),
            (0x1F, 3, flag, 0, 0, 3, apic_id),
        ]
    return entries
