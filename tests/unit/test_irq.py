"""What KVM refuses leaves nothing behind: routes, GSIs, descriptors and memory slots."""

from __future__ import annotations

import errno
import os

import pytest

from tests.support.log_lines import log_lines
from vmm.irq import IrqRouter, unmask_all
from vmm.layout import GSI_MAX, MSI_GSI_FIRST
from vmm.vm import DeviceSlots

GOOD, BAD = 0xFEE00000, 0x101_FEE00000


class Kvm:
    """Refuses a table with a bad message in it, as with wide APIC ids, and what else it is told."""

    def __init__(self) -> None:
        self.routes: list[tuple[int, int, int, int]] = []
        self.known: set[int] = set()
        self.tables = 0
        self.connected: set[int] = set()
        self.irqfd_error = 0
        self.slots: dict[int, int] = {}
        self.slot_error = 0

    def set_gsi_routing(self, routes) -> None:
        if any(high & 0xFF for _, _, high, _ in routes.messages()):
            raise OSError(errno.EINVAL, "KVM_SET_GSI_ROUTING")
        self.routes = routes.messages()
        self.known = {route[0] for route in self.routes}
        self.tables += 1

    def reached(self) -> list[int]:
        """The data of the messages that something is connected to."""
        return sorted(data for gsi, _, _, data in self.routes if gsi in self.connected)

    def irqfd(self, fd: int, gsi: int, assign: bool = True, resample_fd: int = -1) -> None:
        if assign and self.irqfd_error:
            raise OSError(self.irqfd_error, "KVM_IRQFD")
        assert not assign or gsi in self.known
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
    assert kvm.reached() == [0x51, 0x52]


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
    assert kvm.reached() == [0x53]


def test_an_irqfd_that_is_refused_leaves_the_vector_masked(kvm, router):
    (vector,) = router.msi_vectors(1)
    kvm.irqfd_error = errno.ENOMEM
    vector.unmask(GOOD, 0x51)
    assert not vector.unmasked
    kvm.irqfd_error = 0
    vector.unmask(GOOD, 0x51)
    assert vector.unmasked


def test_the_next_messages_of_a_processor_need_no_table(kvm, router):
    vectors = router.msi_vectors(64)
    for number, vector in enumerate(vectors):
        vector.unmask(GOOD | number % 4 << 12, 0x22 + number // 4)
    assert all(vector.unmasked for vector in vectors)
    assert kvm.tables == 4
    vectors[0].mask()
    vectors[0].unmask(GOOD, 0x22)
    assert kvm.tables == 4


def test_no_message_beyond_the_vectors_of_a_processor_is_made_up(kvm, router):
    last, odd = router.msi_vectors(2)
    last.unmask(GOOD, 0xFE)
    odd.unmask(GOOD, 0xC0FE)
    assert sorted(data for *_, data in kvm.routes) == [0xFE, 0xFF, 0xC0FE]


def test_many_at_once_are_one_table(kvm, router):
    vectors = router.msi_vectors(600)
    unmask_all([(vector, GOOD | n % 7 << 12, 0x1000 + n) for n, vector in enumerate(vectors)])
    assert all(vector.unmasked for vector in vectors)
    assert (kvm.tables, len(kvm.connected)) == (1, 600)
    unmask_all([])
    assert kvm.tables == 1


def test_one_refused_of_many_masks_itself_alone(kvm, router):
    vectors = router.msi_vectors(5)
    with log_lines() as lines:
        unmask_all([(v, BAD if n == 2 else GOOD, 0x51 + n) for n, v in enumerate(vectors)])
    assert [vector.unmasked for vector in vectors] == [True, True, False, True, True]
    assert len(lines.having("0x101fee00000")) == 1
    assert kvm.reached() == [0x51, 0x52, 0x54, 0x55]


def test_two_vectors_may_share_a_message(kvm, router):
    first, second = router.msi_vectors(2)
    for vector in (first, second):
        vector.unmask(GOOD, 0x51)
    assert first.gsi == second.gsi
    kvm.connected = {first.gsi}
    first.mask()
    kvm.connected = {second.gsi}
    router._forget_all_but([])
    assert [data for *_, data in router._table.messages()] == [0x51]
    assert second.unmasked


def test_messages_that_nobody_uses_do_not_pile_up(kvm, router):
    (vector,) = router.msi_vectors(1)
    for processor in range(255):
        for data in (0x20, 0x60):
            vector.unmask(GOOD | processor << 12, data)
            assert vector.unmasked
            assert len(kvm.routes) < 2300
    assert kvm.reached() == [0x60]


def test_more_messages_than_gsis(kvm, router):
    most = GSI_MAX - MSI_GSI_FIRST
    vectors = router.msi_vectors(most + 1)
    messages = [(GOOD | n % 256 << 12, 0xC000 + n) for n in range(most + 1)]
    with log_lines() as lines:
        unmask_all([(vector, *message) for vector, message in zip(vectors, messages, strict=True)])
    assert [vector.unmasked for vector in vectors] == [True] * most + [False]
    assert len(lines.having("no GSI is left")) == 1
    assert kvm.tables == 1
    vectors[0].close()
    vectors[-1].unmask(*messages[-1])
    assert vectors[-1].unmasked
    assert len(kvm.routes) == most


def test_a_table_that_kvm_refuses_is_as_it_was(kvm, router):
    (vector,) = router.msi_vectors(1)
    vector.unmask(GOOD, 0x51)
    before = router._table.messages()
    for _ in range(3):
        vector.unmask(BAD, 0x51)
        assert router._table.messages() == before


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
