"""One thread drives at a time, also after an exception came in the middle of taking the turn."""

from __future__ import annotations

import threading

from vmm.debug.turn import Turn


def in_a_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def test_one_has_it():
    turn = Turn()
    assert not turn.taken
    assert turn.take()
    assert turn.taken
    assert turn.mine()
    assert in_a_thread(lambda: (turn.take(), turn.mine())) == (False, False)
    turn.give()
    assert not turn.mine()
    assert in_a_thread(turn.take)
    assert not turn.take()


def test_what_nobody_has_given_back_is_found():
    turn = Turn()
    turn._lock.acquire()  # as a signal's handler leaves it that raises within take() or give()
    assert turn.take()
    assert turn.mine()
    turn.give()
    assert turn.take()
