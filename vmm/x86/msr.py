"""MSRs of every vCPU at boot.

Source: Intel SDM volume 4; the values are those of Cloud Hypervisor's platform.
"""

from __future__ import annotations

IA32_TSC = 0x10
IA32_SYSENTER_CS = 0x174
IA32_SYSENTER_ESP = 0x175
IA32_SYSENTER_EIP = 0x176
IA32_MISC_ENABLE = 0x1A0
IA32_MTRR_DEF_TYPE = 0x2FF
STAR = 0xC0000081
LSTAR = 0xC0000082
CSTAR = 0xC0000083
SYSCALL_MASK = 0xC0000084
KERNEL_GS_BASE = 0xC0000102

MISC_ENABLE_FAST_STRINGS = 1
# MTRRs enabled, default type write-back: firmware need not program any.
MTRR_ENABLE_WRITE_BACK = 0x806


def boot_msrs() -> list[tuple[int, int]]:
    """(index, value) of every MSR set before the first instruction."""
    zero = (
        IA32_SYSENTER_CS, IA32_SYSENTER_ESP, IA32_SYSENTER_EIP, STAR, CSTAR, KERNEL_GS_BASE,
        SYSCALL_MASK, LSTAR, IA32_TSC,
    )  # fmt: skip
    return [
        *((index, 0) for index in zero),
        (IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRINGS),
        (IA32_MTRR_DEF_TYPE, MTRR_ENABLE_WRITE_BACK),
    ]
