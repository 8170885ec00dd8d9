"""What KVM refuses leaves nothing behind: routes, GSIs, descriptors and memory slots."""

from __future__ import annotations

import errno
import os

import pytest

from tests.support.log_lines import log_lines
from vmm.irq import IrqRouter
from vmm.layout import GSI_MAX, MSI_GSI_FIRST
from vmm.vm import DeviceSlots

GOOD, BAD = 0xFEE00000, 0x101_FEE00000


class Kvm:
    """Refuses a table with a bad message in it, as with wide APIC ids, and what else it is told."""

    def __init__(self) -> None:
        self.routes: list[tuple[int, int, int, int]] = []
        self.connected: set[int] = set()
        self.irqfd_error = 0
        self.slots: dict[int, int] = {}
        self.slot_error = 0

    def set_gsi_routing(self, pins, messages) -> None:
        if any(high & 0xFF for _, _, high, _ in messages):
            raise OSError(errno.EINVAL, "KVM_SET_GSI_ROUTING")
        self.routes = list(messages)

    def irqfd(self, fd: int, gsi: int, assign: bool = True, resample_fd: int = -1) -> None:
        if assign and self.irqfd_error:
            raise OSError(self.irqfd_error, "KVM_IRQFD")
        (self.connected.add if assign else self.connected.remove)(gsi)

    def set_user_memory_region(self, slot: int, gpa: int, size: int, hva: int) -> None:
        if self.slot_error:
            raise OSError(self.slot_error, "KVM_SET_USER_MEMORY_REGION")
        if size:
            self.slots[slot] = gpa
        else:
            del self.slots[slot]


@pytest.fixture
def kvm():
    return Kvm()


@pytest.fixture
def router(kvm):
    router = IrqRouter(kvm)
    yield router
    router.close()


def test_a_refused_message_does_not_fail_the_others(kvm, router):
    first, second = router.msi_vectors(2)
    with log_lines() as lines:
        first.unmask(BAD, 0x51)
    assert not first.unmasked
    assert first.gsi is None
    assert len(lines.having("0x101fee00000")) == 1
    second.unmask(GOOD, 0x52)
    first.unmask(GOOD, 0x51)
    assert (first.unmasked, second.unmasked) == (True, True)
    assert sorted(data for *_, data in kvm.routes) == [0x51, 0x52]


def test_a_vector_that_is_moved_to_a_refused_place_is_masked(kvm, router):
    (vector,) = router.msi_vectors(1)
    vector.unmask(GOOD, 0x51)
    vector.unmask(BAD, 0x51)
    assert not vector.unmasked
    assert kvm.connected == set()
    os.eventfd_write(vector.fd, 1)
    assert vector.pending
    vector.unmask(GOOD, 0x53)
    assert vector.unmasked
    assert [data for *_, data in kvm.routes] == [0x53]


def test_an_irqfd_that_is_refused_leaves_the_vector_masked(kvm, router):
    (vector,) = router.msi_vectors(1)
    kvm.irqfd_error = errno.ENOMEM
    vector.unmask(GOOD, 0x51)
    assert not vector.unmasked
    kvm.irqfd_error = 0
    vector.unmask(GOOD, 0x51)
    assert vector.unmasked


def test_more_vectors_than_gsis(kvm, router, monkeypatch):
    monkeypatch.setattr(router, "_next", GSI_MAX - 2)
    assert GSI_MAX - MSI_GSI_FIRST > 2
    vectors = router.msi_vectors(3)
    for vector in vectors:
        vector.unmask(GOOD, 0x51)
    assert [vector.unmasked for vector in vectors] == [True, True, False]
    vectors[0].close()
    vectors[2].unmask(GOOD, 0x51)
    assert [vector.gsi for vector in vectors] == [None, GSI_MAX - 1, GSI_MAX - 2]


def test_a_line_that_is_refused_keeps_no_descriptors(kvm, router):
    kvm.irqfd_error = errno.EBUSY
    line = router.level_line(16)
    before = os.listdir("/proc/self/fd")
    for _ in range(5):
        with pytest.raises(OSError, match="KVM_IRQFD"):
            line.connect()
    assert os.listdir("/proc/self/fd") == before


def test_memory_slots_are_not_lost_to_failures(kvm):
    slots = DeviceSlots(kvm, 2)
    first = slots.map(0x1000, 0x1000, 1)
    slots.unmap(first)
    kvm.slot_error = errno.ENOMEM
    for _ in range(5):
        with pytest.raises(OSError, match="KVM_SET"):
            slots.map(0x1000, 0x1000, 1)
    kvm.slot_error = 0
    assert slots.map(0x1000, 0x1000, 1) == first
    kvm.slot_error = errno.EINVAL
    with pytest.raises(OSError, match="KVM_SET"):
        slots.unmap(first)
    kvm.slot_error = 0
    slots.unmap(first)
    assert kvm.slots == {}
