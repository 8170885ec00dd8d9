"""Places of software breakpoints: shared pages, patches that go, and what is the guest's own."""

from __future__ import annotations

import pytest

from vmm._native.memory.guestmem import GuestMemory
from vmm.debug.patches import Patches
from vmm.debug.points import INT3, Point
from vmm.debug.sites import ALIASES_MAX, Sites

PAGE = 0x1000
CODE = bytes(range(16))
# Linear pages from 0x10000 on are those of the RAM, again and again.
RAM_PAGES = 4


def translate(address: int) -> int | None:
    return address % (RAM_PAGES * PAGE) if address >= 0x10000 else None


@pytest.fixture
def memory():
    memory = GuestMemory([(0, RAM_PAGES * PAGE)])
    memory.write(PAGE, CODE)
    yield memory
    memory.close()


@pytest.fixture
def patches(memory):
    return Patches(memory)


@pytest.fixture(params=[b"\xcc", b"\xe6\xfe"])
def sites(patches, request):
    return Sites(patches, lambda kind: request.param)


def add(sites: Sites, address: int) -> Point:
    point = Point(address, None, None, None, sites.drop, lambda point: sites.changed(point.address))
    site = sites.at(address) or sites.make(address, INT3)
    site.points.append(point)
    sites.changed(address)
    return point


def go(sites: Sites, patches: Patches) -> None:
    sites.bring_up(translate)
    patches.put()


def test_two_addresses_of_a_place_share_its_patch(sites, patches, memory):
    one, other = add(sites, 0x11002), add(sites, 0x15002)
    go(sites, patches)
    assert sites.hits(0x11002, translate) == [one]
    assert sites.hits(0x15002, translate) == [other]
    one.remove()
    go(sites, patches)
    assert memory.read(PAGE, 16) != CODE
    assert sites.hits(0x11002, translate) == []
    assert sites.under(0x11002) is sites.under(0x15002)
    other.remove()
    assert memory.read(PAGE, 16) == CODE
    assert not sites


def test_what_went_while_the_guest_stood_still_is_not_the_guests(sites, patches):
    point = add(sites, 0x11002)
    go(sites, patches)
    point.remove()
    assert sites.hits(0x11002, translate) == []
    assert sites.hits(0x15002, translate) == []
    assert sites.hits(0x11005, translate) is None
    assert sites.hits(0x500, translate) is None
    go(sites, patches)
    assert sites.hits(0x11002, translate) is None


def test_what_is_met_without_the_patch_is_the_guests(sites, patches, memory):
    add(sites, 0x11002)
    go(sites, patches)
    sites.lift(0x11002)
    assert memory.read(PAGE, 16) == CODE
    assert sites.hits(0x11002, translate) is None
    assert sites.hits(0x15002, translate) is None
    go(sites, patches)
    assert sites.hits(0x11002, translate)


def test_a_guest_with_many_addresses_costs_no_more(sites, patches):
    add(sites, 0x11002)
    go(sites, patches)
    for n in range(1, 10 * ALIASES_MAX):
        assert sites.hits(0x11002 + n * RAM_PAGES * PAGE, translate) == []
    assert len(sites._aliases) <= ALIASES_MAX


def test_one_whose_page_comes_later(sites, patches, memory):
    point = add(sites, 0x11002)
    sites.bring_up(lambda address: None)
    patches.put()
    assert memory.read(PAGE, 16) == CODE
    assert sites.under(0x11002) is None
    go(sites, patches)
    assert sites.hits(0x11002, translate) == [point]
    point.enabled = False
    go(sites, patches)
    assert memory.read(PAGE, 16) == CODE
    assert sites.kinds == set()


def test_after_a_restore_they_are_put_in_again(sites, patches, memory):
    point = add(sites, 0x11002)
    go(sites, patches)
    memory.write(PAGE, CODE)
    patches.forget()
    sites.restored()
    assert sites.under(0x11002) is None
    assert patches.read(PAGE, 16) == CODE
    go(sites, patches)
    assert memory.read(PAGE, 16) != CODE
    assert patches.read(PAGE, 16) == CODE
    point.remove()
    assert memory.read(PAGE, 16) == CODE


def test_two_that_would_overlap(sites, patches, memory):
    add(sites, 0x11002)
    add(sites, 0x15003)
    go(sites, patches)
    code = sites.under(0x11002).code
    assert (sites.under(0x15003) is None) == (len(code) == 2)
    assert patches.read(PAGE, 16) == CODE
