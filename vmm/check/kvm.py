"""KVM: its version and capabilities, whether it executes kernels, whether so many vCPUs fit."""

from __future__ import annotations

import os

from vmm.errors import HostError
from vmm.host import nodes
from vmm.host.finding import Finding, of_error, warning
from vmm.host.placement import exits_mask

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.host.files import Host
    from vmm.settings.placement import Placement

NATIVE_ADVICE = "use a host whose KVM drives the processor's own virtualisation"


def kvm(host: Host, vcpus: int | None, placement: Placement | None = None) -> list[Finding]:
    """KVM's version and capabilities, whether it executes kernels, and whether ``vcpus`` fit.

    With ``placement``, whether it leaves the guest what that asks for. Opens the real /dev/kvm, and
    runs a guest of a few instructions for some ms.
    """
    from vmm.check.probe import can_run_kernels
    from vmm.host.kvm import KVM_API_VERSION, check_vcpu_count, max_vcpus, open_kvm

    if nodes.kvm_node(host).code:
        return []  # told by its own finding
    try:
        opened = open_kvm()
    except HostError as error:
        return [of_error("kvm", error)]
    findings = []
    try:
        told = f"KVM API {KVM_API_VERSION} with all capabilities needed"
        findings.append(Finding("kvm", f"{told}; up to {max_vcpus(opened)} vCPUs"))
        if vcpus is not None:
            check_vcpu_count(opened, vcpus)
            _check_tables(vcpus)
            findings.append(_vcpus(vcpus, len(os.sched_getaffinity(0))))
    except HostError as error:
        findings.append(of_error("vcpus", error))
    try:
        if placement is not None and placement.exits:
            exits_mask(opened, placement)
            told = f"KVM leaves {'+'.join(placement.exits)} to the guest"
            findings.append(Finding("kvm-exits", told))
    except HostError as error:
        findings.append(of_error("kvm-exits", error))
    finally:
        opened.close()
    good, why = can_run_kernels()
    if good:
        findings.append(Finding("kvm-native", "KVM executes kernel code"))
    else:
        found = f"guest kernels will not run: {why}"
        findings.append(warning("kvm-native", found, advice=NATIVE_ADVICE))
    return findings


def _check_tables(vcpus: int) -> None:
    """HostError when the tables that describe so many vCPUs have no room."""
    from vmm._native.host.posix import host_cpuid
    from vmm.acpi.spec import AcpiSpec
    from vmm.acpi.tables import build_acpi
    from vmm.layout import HIGH_MEMORY_GPA, ged_gpa
    from vmm.x86 import cpuid

    apic_ids = cpuid.flat_topology(vcpus).apic_ids()
    place = ged_gpa(cpuid.guest_phys_bits(host_cpuid))
    build_acpi(AcpiSpec(apic_ids, (HIGH_MEMORY_GPA, HIGH_MEMORY_GPA), place))


def _vcpus(count: int, processors: int) -> Finding:
    told = f"CPU_COUNT={count}, of {processors} processors"
    if count <= processors:
        return Finding("vcpus", told)
    return warning("vcpus", f"{told}: they will wait for each other", advice="lower CPU_COUNT")
