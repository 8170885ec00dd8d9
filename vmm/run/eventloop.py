"""The control thread's loop: descriptors and timers by epoll; it sleeps in between."""

from __future__ import annotations

import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Timer:
    """A call at a later time; cancel() it at will."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """The call will not happen; idempotent."""
        self.callback = None


class EventLoop:
    """Level-triggered epoll with callbacks. All of it belongs to one thread."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._timers: list[Timer] = []

    def add(self, fd: int, callback: Callable[[], None], writable: bool = False) -> None:
        """Call ``callback`` whenever ``fd`` is readable (or takes data) or hung up."""
        self._epoll.register(fd, select.EPOLLOUT if writable else select.EPOLLIN)
        self._callbacks[fd] = callback

    def remove(self, fd: int) -> None:
        """Forget ``fd``; call it before closing the descriptor. Idempotent."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` once, after ``seconds``."""
        timer = Timer(time.monotonic() + seconds, callback)
        self._timers.append(timer)
        return timer

    def run_until(self, finished: Callable[[], bool]) -> None:
        """Serve events until ``finished()`` is true, which is asked after each round."""
        while not finished():
            for fd, _ in self._epoll.poll(self._next_timeout()):
                callback = self._callbacks.get(fd)
                if callback is not None:
                    callback()
            self._run_timers()

    def _next_timeout(self) -> float:
        self._timers = [timer for timer in self._timers if timer.callback is not None]
        if not self._timers:
            return -1
        first = min([timer.when for timer in self._timers])
        return max(0.0, first - time.monotonic())

    def _run_timers(self) -> None:
        now = time.monotonic()
        for timer in [timer for timer in self._timers if timer.when <= now]:
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()

    def close(self) -> None:
        """Give the epoll descriptor back."""
        self._epoll.close()
