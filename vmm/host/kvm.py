"""The /dev/kvm of this host: opened, and found to have what a VM here needs."""

from __future__ import annotations

import errno
import os

from vmm._native.kvm.vm import Kvm
from vmm.errors import HostError
from vmm.host.files import HOST, KVM_PATH

KVM_API_VERSION = 12
# KVM_CAP_* that must be there (linux/kvm.h), with the name told when one is missing.
REQUIRED_CAPS = {
    0: "IRQCHIP",
    3: "USER_MEMORY",
    4: "SET_TSS_ADDR",
    7: "EXT_CPUID",
    14: "MP_STATE",
    25: "IRQ_ROUTING",
    32: "IRQFD",
    36: "IOEVENTFD",
    37: "SET_IDENTITY_MAP_ADDR",
    136: "IMMEDIATE_EXIT",
}
CAP_NR_VCPUS = 9
CAP_MAX_VCPUS = 66


def open_kvm(opened: int = -1) -> Kvm:
    """Open KVM and check what it can do; HostError says what is missing and what helps.

    ``opened``: a descriptor of one that was checked when it was opened; it stays its owner's.
    """
    if opened >= 0:
        return Kvm(os.dup(opened))
    try:
        kvm = Kvm.open(KVM_PATH)
    except (FileNotFoundError, PermissionError):
        from vmm.host.nodes import kvm_refused

        finding = kvm_refused(HOST)
        raise HostError(finding.found, finding.remedy) from None
    except OSError as error:
        raise HostError(
            f"cannot open {KVM_PATH}: {error.strerror}",
            "check that the processor's virtualisation is enabled and not used by another "
            "hypervisor",
        ) from error
    try:
        version = kvm.get_api_version()
        missing = [name for cap, name in REQUIRED_CAPS.items() if not kvm.check_extension(cap)]
    except OSError as error:
        kvm.close()
        if error.errno != errno.ENOTTY:
            raise
        raise HostError(
            f"{KVM_PATH} is not KVM: {error}",
            "`ls -l` must show it as character device 10, 232: remove it, modprobe kvm_intel or "
            "kvm_amd",
        ) from error
    if version != KVM_API_VERSION or missing:
        kvm.close()
        found = f"KVM API {version}" + (f" without {', '.join(missing)}" if missing else "")
        raise HostError(f"{KVM_PATH}: {found}", "use a kernel from 4.14 on, with KVM API 12")
    return kvm


def max_vcpus(kvm: Kvm) -> int:
    """The most vCPUs KVM gives one VM."""
    return kvm.check_extension(CAP_MAX_VCPUS) or kvm.check_extension(CAP_NR_VCPUS) or 4


def check_vcpu_count(kvm: Kvm, count: int) -> None:
    """HostError when KVM does not give one VM so many."""
    limit = max_vcpus(kvm)
    if count > limit:
        raise HostError(
            f"VLLMD_HYPERVISOR_CPU_COUNT={count}: this host's KVM allows {limit}",
            f"use 1 to {limit}",
        )
