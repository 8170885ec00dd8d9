"""One topology in all leaves, for AMD's and Intel's lists."""

from __future__ import annotations

import pytest

from vmm._native.kvm.vcpu import pack_cpuid
from vmm.x86.cpuid import (
    HYPERVISOR_TIMING,
    Topology,
    common_cpuid,
    flat_topology,
    vcpu_cpuid,
    vcpu_tables,
)

INTEL = (0x756E6547, 0x6C65746E, 0x49656E69)
AMD = (0x68747541, 0x444D4163, 0x69746E65)


def supported(vendor: tuple[int, int, int]) -> list[tuple[int, ...]]:
    ebx, ecx, edx = vendor
    return [
        (0, 0, 0, 0x20, ebx, ecx, edx),
        (1, 0, 0, 0xA0F11, 0x00100800, 0, 0),
        (4, 0, 1, 0xFC004121, 0, 0, 0),
        (4, 3, 1, 0xFC1FC163, 0, 0, 0),
        (7, 0, 1, 1, 0, 0, 0xFFFFFFFF),
        (0xB, 0, 1, 1, 2, 0x100, 0),
        (0x1D, 0, 1, 1, 0, 0, 0),
        (0x40000000, 0, 0, 0x40000001, 0, 0, 0),
        (0x40000001, 0, 0, 0, 0, 0, 0),
        (0x80000001, 0, 0, 0, 0, 0, 0),
        (0x80000002, 0, 0, 0, 0, 0, 0),
        (0x80000005, 0, 0, 0, 0, 0, 0),
        (0x80000007, 0, 0, 0, 0, 0, 0x100),
        (0x80000008, 0, 0, 0x3030, 0, 0x1234, 0),
        (0x8000001D, 3, 1, 0x0007C163, 0, 0, 0),
        (0x8000001E, 0, 0, 9, 9, 9, 9),
    ]


def leaves(vendor, count: int, index: int) -> dict[tuple[int, int], tuple[int, int, int, int]]:
    topology = flat_topology(count)
    common = common_cpuid(
        supported(vendor), lambda leaf, sub: (leaf, 2, 3, 4), phys_bits=46, tsc_khz=2_600_000,
        topology=topology,
    )  # fmt: skip
    entries = vcpu_cpuid(common, index, topology)
    keys = [(e[0], e[1]) for e in entries]
    assert len(set(keys)) == len(keys)
    return {(e[0], e[1]): e[3:] for e in entries}


@pytest.mark.parametrize("vendor", [INTEL, AMD], ids=["intel", "amd"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 64, 255, 256, 300])
def test_topology_agrees_in_all_leaves(vendor, count):
    width = (count - 1).bit_length()
    for index in {0, count // 2, count - 1}:
        found = leaves(vendor, count, index)
        assert found[1, 0][1] >> 24 == index & 0xFF
        assert found[1, 0][1] >> 16 & 0xFF == min(count, 255)
        assert bool(found[1, 0][3] & 1 << 28) == (count > 1)
        assert found[0xB, 0] == (0, 1, 1 << 8, index)
        assert found[0xB, 1] == (width, count, 2 << 8 | 1, index)
        assert found[0xB, 2][1] == 0
        assert found[4, 3][0] >> 26 == min((1 << width) - 1, 63)
        # no cache is shared by more CPUs than there are, nor a first-level one by two
        assert (found[4, 3][0] >> 14 & 0xFFF) + 1 <= 1 << width
        assert found[4, 0][0] >> 14 & 0xFFF == 0
        if vendor == AMD:
            assert (0x1F, 0) not in found
            assert found[0x80000008, 0][2] >> 12 & 0xF == width & 0xF
            assert found[0x80000008, 0][2] & 0xFF == count - 1 & 0xFF
            assert found[0x8000001E, 0][:2] == (index, index & 0xFF)
            assert (found[0x8000001D, 3][0] >> 14 & 0xFFF) + 1 <= max(1, 1 << width)
        else:
            assert found[0x1F, 2] == (width, count, 5 << 8 | 2, index)


@pytest.mark.parametrize("vendor", [INTEL, AMD], ids=["intel", "amd"])
def test_edits(vendor):
    found = leaves(vendor, 4, 0)
    assert found[1, 0][2] & 1 << 31  # a hypervisor is present
    assert found[1, 0][2] & 1 << 24  # TSC deadline
    assert found[0x40000000, 0][0] == HYPERVISOR_TIMING
    assert found[HYPERVISOR_TIMING, 0][:2] == (2_600_000, 1_000_000)
    assert found[0x40000001, 0][0] & 1 << 15
    assert found[0x80000008, 0][0] & 0xFF == 46
    assert found[0x80000002, 0] == (0x80000002, 2, 3, 4)
    assert not found[7, 0][3] & (1 << 22 | 1 << 24 | 1 << 25)  # AMX
    assert (0x1D, 0) not in found


@pytest.mark.parametrize("vendor", [INTEL, AMD], ids=["intel", "amd"])
@pytest.mark.parametrize("topology", [flat_topology(1), flat_topology(300), Topology(2, 3, 2)])
def test_packed_tables_are_the_lists_packed(vendor, topology):
    common = common_cpuid(
        supported(vendor), lambda leaf, sub: (leaf, 2, 3, 4), phys_bits=46, tsc_khz=1,
        topology=topology,
    )  # fmt: skip
    assert vcpu_tables(common, topology, pack_cpuid) == [
        pack_cpuid(vcpu_cpuid(common, index, topology)) for index in range(topology.count)
    ]
