"""The routing table in native memory: one entry for a GSI, whatever comes and goes."""

from __future__ import annotations

import random

import pytest

from vmm._native.kvm.vm import GsiRoutes


def test_it_holds_what_a_dict_would():
    table, model, chance = GsiRoutes(), {}, random.Random(7)
    for pin in range(24):
        table.pin(pin, pin)
    assert table.messages() == []
    for _ in range(5000):
        gsi = chance.randrange(24, 400)
        if chance.random() < 0.4:
            table.remove(gsi)
            model.pop(gsi, None)
        else:
            model[gsi] = (chance.getrandbits(32), chance.getrandbits(32), chance.getrandbits(32))
            table.message(gsi, *model[gsi])
    assert table.messages() == sorted((gsi, *message) for gsi, message in model.items())


def test_all_gsis_and_no_more():
    table = GsiRoutes()
    for gsi in range(4096):
        table.message(gsi, gsi, 0, gsi)
    assert len(table.messages()) == 4096
    with pytest.raises(ValueError, match="4096"):
        table.message(4096, 0, 0, 0)
    table.remove(4096)
    for gsi in range(4096):
        table.remove(gsi)
    assert table.messages() == []
    table.message(5, 1, 2, 3)
    assert table.messages() == [(5, 1, 2, 3)]
