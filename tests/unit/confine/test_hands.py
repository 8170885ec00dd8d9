"""The thread that works for vCPUs."""

from __future__ import annotations

import os
import threading
from functools import partial

import pytest

from vmm.confine.hands import Hands


@pytest.fixture
def hands():
    made = Hands()
    yield made
    made.close()


def test_what_is_asked_is_done_by_another_thread(hands):
    found = []
    hands.carry_out(lambda: found.append(threading.get_ident()))
    assert found
    assert found[0] != threading.get_ident()


def test_its_name_is_seen(hands):
    found = []

    def look() -> None:
        with open(f"/proc/self/task/{threading.get_native_id()}/comm", encoding="ascii") as file:
            found.append(file.read())

    hands.carry_out(look)
    assert found == ["hands\n"]


@pytest.mark.parametrize("kind", [ValueError, OSError, KeyboardInterrupt])
def test_what_is_raised_comes_back(hands, kind):
    def fail() -> None:
        raise kind("no")

    with pytest.raises(kind, match="no"):
        hands.carry_out(fail)
    hands.carry_out(lambda: None)


def test_many_ask_at_once(hands):
    done = []

    def ask() -> None:
        for number in range(50):
            hands.carry_out(partial(done.append, number))

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert sorted(done) == sorted(list(range(50)) * 4)


def test_nothing_is_left():
    before = (len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")))
    for _ in range(5):
        made = Hands()
        made.carry_out(lambda: None)
        made.close()
        made.close()
    for _ in range(100):
        after = (len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")))
        if after == before:
            return
        threading.Event().wait(0.02)
    assert after == before
