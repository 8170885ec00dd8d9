"""Whether KVM walks a guest's page tables by hardware, or keeps copies of them.

Copies (shadow pages) go on as they are when a guest's page tables are changed by somebody else
than the guest: by us, when a snapshot is restored.
"""

from __future__ import annotations

# EPT of Intel's, nested page tables of AMD's: each module says whether it uses them.
PARAMETERS = ("/sys/module/kvm_intel/parameters/ept", "/sys/module/kvm_amd/parameters/npt")


def pages_by_hardware() -> bool:
    """True where KVM needs no shadow pages."""
    for path in PARAMETERS:
        try:
            with open(path, encoding="ascii") as file:
                return file.read().strip() in ("Y", "1")
        except OSError:
            continue
    return False
