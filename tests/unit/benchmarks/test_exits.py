"""The exits of a boot by device and cause: from what the kernel's histograms say."""

from __future__ import annotations

from collections import Counter

from benchmarks.inside_exits import KEYS, entries, rows

HISTOGRAM = """# event histogram
#
# trigger info: hist:keys=rw,port:vals=hitcount:sort=hitcount:size=8192 [active]
#

{ rw:          0, port:       1544 } hitcount:         20
{ rw:          1, port:       3320 } hitcount:        989
{ rw:          0, port:       3324 } hitcount:        338
{ rw:          0, port:       3326 } hitcount:        130
{ rw:          1, port:        761 } hitcount:          3
{ rw:          1, port:        128 } hitcount:          1

Totals:
    Hits: 1481
    Entries: 6
    Dropped: 0
"""


def test_a_histogram_is_read():
    found = entries(HISTOGRAM, KEYS["kvm_pio"].split(","))
    assert found.total() == 1481
    assert found[1, 3320] == 989
    named = entries("{ type: read       [  1], gpa: 3892314112 } hitcount: 7\n", ["type", "gpa"])
    assert named == {(1, 0xE8000000): 7}


def test_rows():
    found = {
        "kvm_pio": entries(HISTOGRAM, ["rw", "port"]),
        # A read that the VMM answers, one that KVM does, and a write.
        "kvm_mmio": Counter({(0, 0xE7F80014): 8, (1, 0xE7F80014): 8, (1, 0xFEC00010): 5,
                             (2, 1 << 39): 2}),
        "kvm_msr": Counter({(0x6E0,): 100, (0x80B,): 3, (0x10A,): 1}),
        "kvm_exit": Counter({(2, 0x60): 90, (2, 0x7B): 1481, (2, 0x7C): 104, (2, 0x400): 20,
                             (2, 0x72): 7, (2, 0x14): 2}),
        "kvm_userspace_exit": Counter({(2,): 700, (6,): 10, (10,): 4}),
    }  # fmt: skip
    assert rows(found) == {
        "port: PM timer": 20,
        "port: PCI configuration, address": 989,
        "port: PCI configuration, data": 468,
        "port: COM2 to COM4, absent": 3,
        "port: others": 1,
        "MMIO: virtio registers": 10,
        "MMIO: IOAPIC (in KVM)": 5,
        "MSR: TSC deadline": 100,
        "MSR: x2APIC": 3,
        "MSR: others": 1,
        "host's interrupts": 90,
        "page faults": 5,
        "CPUID": 7,
        "others": 2,
        "all": 1704,
        "to the VMM: ports": 700,
        "to the VMM: MMIO": 10,
        "to the VMM: others": 4,
    }


def test_intels_page_faults_and_mmio_are_told_apart_by_the_processor():
    found = {event: Counter() for event in KEYS}
    found["kvm_mmio"] = Counter({(1, 0xE7F80014): 8})
    found["kvm_exit"] = Counter({(1, 48): 30, (1, 49): 8, (1, 12): 2})
    assert rows(found) == {"MMIO: virtio registers": 8, "page faults": 30, "HLT": 2, "all": 40}
