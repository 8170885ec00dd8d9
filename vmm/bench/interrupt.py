"""Ctrl-C and SIGTERM of a run: an end that is asked for once is never lost.

Python raises KeyboardInterrupt wherever it stands, and that is lost in a finalizer; while a process
is being made, it would leave one that nobody knows. Source: signal's documentation, "Note on Signal
Handlers and Exceptions".
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """The handler of both signals while a command runs; its main thread's."""

    def __init__(self) -> None:
        self.asked = False
        self.deferred = False

    def __call__(self, *_: object) -> None:
        """A signal came."""
        self.asked = True
        if not self.deferred:
            raise KeyboardInterrupt


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """Both signals end what runs inside, even where a shell's background job would ignore them."""
    handler = Interrupts()
    before = [signal.signal(one, handler) for one in SIGNALS]
    try:
        yield
    finally:
        for one, old in zip(SIGNALS, before, strict=True):
            signal.signal(one, old)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """What is asked for inside is heard at its end."""
    handler = signal.getsignal(signal.SIGINT)
    if not isinstance(handler, Interrupts):
        yield
        return
    handler.deferred = True
    try:
        yield
    finally:
        handler.deferred = False
    check()


def check() -> None:
    """KeyboardInterrupt, if an end was asked for; to be called before something long."""
    handler = signal.getsignal(signal.SIGINT)
    if isinstance(handler, Interrupts) and handler.asked:
        raise KeyboardInterrupt
