"""BARs moved in any order: registers keep what was written, ranges follow as soon as they can."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.pci.bar import Bar, IoBar
from devices.pci.config_space import COMMAND, ConfigSpace
from devices.pci.function import PciFunction
from devices.pci.root import PciRoot
from vmm._native.kvm.bus import Bus

LOW = (0xE000_0000, 0x10_0000)
HIGH = (0x40_0000_0000, 0x100_0000)
PORTS = (0xC000, 0x1000)
RAM = 0x10_0000
SIZE, BIG = 0x1000, 0x4000
ONES = 0xFFFFFFFF


class Target:
    """What is behind a BAR: reads tell which one answered."""

    def __init__(self, mark: int) -> None:
        self.mark = mark

    def read(self, offset: int, size: int) -> int:
        return self.mark

    def write(self, offset: int, value: int, size: int) -> None: ...


class Card(PciFunction):
    """A function that remembers where it was told its BARs are."""

    def __init__(self, number: int, bars: list[Bar]) -> None:
        super().__init__(f"card{number}", ConfigSpace(0x1234, number, 0, 0, (0, 0)))
        self.told: dict[int, int | None] = {}
        self.targets = {}
        for bar in bars:
            self.add_bar(bar)
            self.targets[bar.index] = Target(16 * number + bar.index + 1)

    def bar_target(self, bar: Bar) -> object:
        return self.targets[bar.index]

    def bar_moved(self, bar: Bar, old: int | None, new: int | None) -> None:
        assert self.told.get(bar.index) == old
        self.told[bar.index] = new


class Rig:
    """A bus with three cards: a wide and a port BAR, a 32-bit one, and a large wide one."""

    def __init__(self) -> None:
        self.mmio, self.pio = Bus("MMIO"), Bus("ports")
        self.root = PciRoot(self.mmio, [LOW, HIGH], self.pio, PORTS)
        self.cards = [
            Card(1, [Bar(0, SIZE, wide=True), IoBar(2, 16)]),
            Card(2, [Bar(0, SIZE)]),
            Card(3, [Bar(0, BIG, wide=True)]),
        ]
        for slot, card in enumerate(self.cards, 1):
            self.root.add(slot, card)

    def write(self, card: int, register: int, value: int, size: int = 4) -> None:
        self.root.config_write(0, card + 1, 0, register, value, size)

    def read(self, card: int, register: int) -> int:
        return self.root.config_read(0, card + 1, 0, register, 4)

    def at(self, address: int) -> int:
        return self.mmio.read(address, 1)

    def decode(self, card: int, command: int = 3) -> None:
        self.write(card, COMMAND, command, 2)

    def move(self, card: int, address: int, upper_first: bool = False) -> None:
        halves = [(0x10, address & ONES), (0x14, address >> 32)]
        for register, value in reversed(halves) if upper_first else halves:
            self.write(card, register, value)


A, B, BIG_CARD = 0, 1, 2
MARK_A, MARK_B, MARK_BIG = 17, 33, 49


@pytest.fixture
def rig():
    return Rig()


@pytest.mark.parametrize("upper_first", [True, False])
def test_a_64_bit_bar_moves_with_decoding_on_in_either_order(rig, upper_first):
    rig.move(A, LOW[0])
    rig.decode(A)
    for address in (HIGH[0] + 0x3000, LOW[0] + 0x5000, HIGH[0]):
        rig.move(A, address, upper_first)
        assert rig.at(address) == MARK_A
        assert rig.read(A, 0x10) & ~0xF | rig.read(A, 0x14) << 32 == address


def test_a_place_that_is_taken_is_followed_to_when_it_is_left(rig):
    rig.move(A, LOW[0])
    rig.decode(A)
    rig.write(B, 0x10, LOW[0] + SIZE)
    rig.decode(B)
    rig.write(B, 0x10, LOW[0])  # A is there
    assert rig.read(B, 0x10) == LOW[0]
    assert rig.at(LOW[0]) == MARK_A
    rig.move(A, HIGH[0])
    assert (rig.at(LOW[0]), rig.at(LOW[0] + SIZE), rig.at(HIGH[0])) == (MARK_B, 0xFF, MARK_A)


def test_two_bars_change_places(rig):
    rig.move(A, LOW[0])
    rig.write(B, 0x10, LOW[0] + SIZE)
    for card in (A, B):
        rig.decode(card)
    rig.write(A, 0x10, LOW[0] + SIZE)
    rig.write(B, 0x10, LOW[0])
    assert (rig.at(LOW[0]), rig.at(LOW[0] + SIZE)) == (MARK_B, MARK_A)


@pytest.mark.parametrize("place", [RAM, 0, 0xFEE00000, HIGH[0] + HIGH[1], 0xFFFF_FFFF_0000_0000])
def test_an_impossible_place_is_kept_in_the_register_alone(rig, place):
    rig.move(A, LOW[0])
    rig.decode(A)
    rig.move(A, place)
    assert rig.read(A, 0x10) & ~0xF | rig.read(A, 0x14) << 32 == place
    assert rig.at(place) == 0xFF
    assert rig.at(LOW[0]) == MARK_A
    rig.decode(A, 0)
    assert rig.at(LOW[0]) == 0xFF
    rig.decode(A)
    assert rig.at(LOW[0]) == 0xFF
    rig.move(A, HIGH[0])
    assert rig.at(HIGH[0]) == MARK_A


def test_switching_off_makes_room(rig):
    rig.move(A, LOW[0])
    rig.write(B, 0x10, LOW[0])
    rig.move(BIG_CARD, LOW[0])
    for card in (A, B, BIG_CARD):
        rig.decode(card)
    assert rig.at(LOW[0]) == MARK_A
    rig.decode(A, 0)
    assert rig.at(LOW[0]) == MARK_B
    rig.decode(B, 0)
    assert rig.at(LOW[0]) == rig.at(LOW[0] + BIG - 1) == MARK_BIG


def test_a_size_probe_with_decoding_on_moves_nothing(rig):
    rig.move(A, HIGH[0])
    rig.decode(A)
    rig.write(A, 0x10, ONES)
    rig.write(A, 0x14, ONES)
    assert rig.read(A, 0x10) & ~0xF == -SIZE & ONES
    assert rig.at(HIGH[0]) == MARK_A
    rig.move(A, LOW[0])
    assert (rig.at(LOW[0]), rig.at(HIGH[0])) == (MARK_A, 0xFF)


def test_one_function_that_cannot_follow_does_not_stop_the_others(rig, monkeypatch):
    def refuse(bar, old, new):
        raise OSError(12, "no memory slot")

    monkeypatch.setattr(rig.cards[A], "bar_moved", refuse)
    rig.move(A, LOW[0])
    rig.decode(A)
    rig.write(B, 0x10, LOW[0])
    rig.decode(B)
    rig.decode(A, 0)
    assert rig.at(LOW[0]) == MARK_B


# --- any sequence, against what must hold in the end ---

places = st.one_of(
    st.integers(0, 7).map(lambda n: LOW[0] + SIZE * n),
    st.integers(0, 7).map(lambda n: HIGH[0] + SIZE * n),
    st.sampled_from([0, RAM, LOW[0] + LOW[1], HIGH[0] - SIZE, 0xFFFFF000]),
)
ports = st.sampled_from([0, PORTS[0], PORTS[0] + 16, 0xFFF0])
steps = st.one_of(
    st.tuples(st.just("low"), st.integers(0, 2), places),
    st.tuples(st.just("high"), st.integers(0, 2), places),
    st.tuples(st.just("decode"), st.integers(0, 2), st.integers(0, 3)),
    st.tuples(st.just("probe"), st.integers(0, 2), st.integers(0, 1)),
    st.tuples(st.just("ports"), st.just(0), ports),
)


class Model:
    """What the registers of each card hold, by the specification alone."""

    def __init__(self) -> None:
        self.halves = [[0, 0], [0, 0], [0, 0]]
        self.probing = [[False, False], [False, False], [False, False]]
        self.command = [0, 0, 0]
        self.port = 0

    def take(self, step, rig: Rig) -> None:
        kind, card, value = step
        half = 0
        if kind == "ports":
            self.port = value
            rig.write(card, 0x18, value)
        elif kind == "decode":
            self.command[card] = value
            rig.decode(card, value)
        elif kind == "probe":
            half = value if card != B else 0
            self.probing[card][half] = True
            rig.write(card, 0x10 + 4 * half, ONES)
        elif kind == "low" or card != B:
            half = int(kind == "high")
            self.halves[card][half] = value >> 32 if half else value & ONES
            self.probing[card][half] = False
            rig.write(card, 0x10 + 4 * half, self.halves[card][half])

    def wanted(self, card: int) -> int | None:
        """Where a card's memory BAR belongs, when it is to be there for certain."""
        size = BIG if card == BIG_CARD else SIZE
        value = (self.halves[card][0] | self.halves[card][1] << 32) & -size
        if any(self.probing[card]) or not self.command[card] & 2:
            return None
        inside = any(s <= value and value + size <= s + length for s, length in (LOW, HIGH))
        return value if inside else None


@settings(max_examples=300, deadline=None)
@given(st.lists(steps, max_size=40))
def test_any_sequence_of_writes(sequence):
    rig, model = Rig(), Model()
    for step in sequence:
        model.take(step, rig)
    bars = [(card, card.bars[0]) for card in rig.cards]
    for number, (card, bar) in enumerate(bars):
        for half in range(2 if bar.wide else 1):
            if not model.probing[number][half]:
                expected = model.halves[number][half]
                if not half:
                    expected = expected & -bar.size & ONES | bar.flags
                assert rig.read(number, 0x10 + 4 * half) == expected
        if not model.command[number] & 2:
            assert bar.mapped is None
        wanted = model.wanted(number)
        if wanted is not None and bar.mapped != wanted:
            right = [
                other for n, (_, other) in enumerate(bars)
                if other is not bar and other.mapped is not None
                and (other.mapped == model.wanted(n) or any(model.probing[n]))
                and wanted < other.mapped + other.size and other.mapped < wanted + bar.size
            ]  # fmt: skip
            assert right, f"nothing is in the way of {card.name} at {wanted:#x}"
        if bar.mapped is not None:
            assert rig.at(bar.mapped) == card.targets[0].mark
        assert card.told.get(0) == bar.mapped
    inside = PORTS[0] <= model.port < PORTS[0] + PORTS[1]
    io_bar = rig.cards[0].bars[1]
    if model.command[0] & 1 and inside:
        assert io_bar.mapped == model.port
        assert rig.pio.read(model.port, 1) == rig.cards[0].targets[2].mark
    if not model.command[0] & 1:
        assert io_bar.mapped is None
