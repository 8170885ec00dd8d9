"""Where BARs go before the guest decides."""

from __future__ import annotations

import pytest

from vmm.layout import TopDownAllocator, ram_regions
from vmm.settings.memory import SIZE_MAX

TIB = 1 << 40
# An AMD host's IOMMU: no interrupts, and no HyperTransport area below 1 TiB.
AMD = [(0, 0xFEDFFFFF), (0xFEF00000, 0xFCFFFFFFFF), (TIB, (1 << 64) - 1)]


def window() -> TopDownAllocator:
    return TopDownAllocator("window", 4 << 30, TIB - (4 << 30))


def test_from_the_top_downwards():
    free = window()
    assert free.allocate(0x1000, 0x1000) == TIB - 0x1000
    assert free.allocate(1 << 30, 1 << 30) == TIB - (2 << 30)
    with pytest.raises(ValueError, match="window is full"):
        free.allocate(TIB, 1 << 30)


def test_where_the_iommu_can_map():
    free = window()
    assert free.allocate(8 << 30, 8 << 30, AMD) == 0xFA00000000
    assert free.allocate(1 << 20, 1 << 20, AMD) == 0xFA00000000 - (1 << 20)


def test_elsewhere_when_it_can_map_nothing_there():
    assert window().allocate(1 << 20, 1 << 20, [(0, 0xFFFFFFFF)]) == TIB - (1 << 20)
    assert window().allocate(1 << 20, 1 << 20, []) == TIB - (1 << 20)


def test_the_largest_ram_fits_into_slots_of_kvm():
    """KVM_MEM_MAX_NR_PAGES of the kernel's linux/kvm_host.h."""
    assert sum(size for _, size in ram_regions(SIZE_MAX)) == SIZE_MAX
    assert all(size // 4096 <= (1 << 31) - 1 for _, size in ram_regions(SIZE_MAX))
