"""An end that is asked for once is heard: deferred, and where an exception of Python's is lost."""

from __future__ import annotations

import signal
import threading

import pytest

from vmm.bench import interrupt


def send(number: int) -> None:
    """To this thread: one that is the process's another thread may take, and be late with it."""
    signal.pthread_kill(threading.get_ident(), number)


class Loses:
    """A finalizer in which a signal comes."""

    def __del__(self) -> None:
        send(signal.SIGINT)
        for _ in range(1000):
            pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_lost_in_a_finalizer_it_is_heard_at_the_next_look():
    with interrupt.heard():
        interrupt.check()
        Loses()
        with pytest.raises(KeyboardInterrupt):
            interrupt.check()


@pytest.mark.parametrize("number", interrupt.SIGNALS)
def test_deferred_until_the_end(number):
    done = []
    with interrupt.heard(), pytest.raises(KeyboardInterrupt):
        asked_meanwhile(number, done)
    assert done


def asked_meanwhile(number: int, done: list) -> None:
    with interrupt.deferred():
        send(number)
        done.append(True)


def test_without_a_handler_of_ours_nothing_is_changed():
    before = [signal.getsignal(one) for one in interrupt.SIGNALS]
    with interrupt.heard():
        assert [signal.getsignal(one) for one in interrupt.SIGNALS] != before
    assert [signal.getsignal(one) for one in interrupt.SIGNALS] == before
    with interrupt.deferred():
        assert [signal.getsignal(one) for one in interrupt.SIGNALS] == before
    interrupt.check()
