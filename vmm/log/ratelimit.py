"""How many lines one place in the code may write.

A guest decides how often some lines are written, and must not fill the host's disk with them. Each
place has a few lines at once, and then one a second; while it is much busier than that, the time
between two lines doubles up to a minute. How many were left out is told with the next line, or
with the next of another place.
"""

from __future__ import annotations

from _thread import allocate_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    # File and line of the caller, level, and whether it is the control thread.
    Place = tuple[str, int, int, bool]
    # Level, logger's name and text.
    Line = tuple[int, str, str]

DEBUG = 7
# Lines at once: of a vCPU's or a device's thread, of the control thread (a start with many
# mistakes tells them all), and for developers, who asked for many.
BURST = 10
CONTROL_BURST = 50
DEBUG_BURST = 100
PAUSE_SECONDS = 1.0
DEBUG_PAUSE_SECONDS = 0.1
PAUSE_MAX_SECONDS = 60.0
# A place that was silent for so long starts over.
QUIET_SECONDS = 10.0
# So long a number of lines left out waits for another line of the same place.
OVERDUE_SECONDS = 2.0


class Budget:
    """What one place has left. Guarded by the lock of its RateLimit."""

    __slots__ = ("burst", "first_pause", "last", "line", "missed", "pause", "tokens")

    def __init__(self, place: Place, now: float) -> None:
        _, _, level, control = place
        self.burst = CONTROL_BURST if control else BURST
        self.first_pause = PAUSE_SECONDS
        if level >= DEBUG:
            self.burst, self.first_pause = DEBUG_BURST, DEBUG_PAUSE_SECONDS
        self.pause = self.first_pause
        self.tokens = float(self.burst)
        self.last = now
        self.missed = 0
        self.line: Line | None = None

    def take(self, now: float) -> bool:
        """Whether a line may be written now."""
        waited = now - self.last
        self.last = now
        if waited >= QUIET_SECONDS:
            self.pause, self.tokens = self.first_pause, float(self.burst)
        self.tokens = min(float(self.burst), self.tokens + waited / self.pause)
        if self.tokens < 1:
            return False
        self.tokens -= 1
        self.pause = min(2 * self.pause, PAUSE_MAX_SECONDS) if self.missed else self.first_pause
        return True

    def settle(self) -> int:
        """How many lines were left out since this was last asked."""
        missed, self.missed = self.missed, 0
        return missed


class RateLimit:
    """The budgets of all places. Any thread may ask: ``_lock`` holds all of it.

    No other lock is taken and no line is written under it.
    """

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._budgets: dict[Place, Budget] = {}
        self._missing: set[Place] = set()

    def ask(self, place: Place, line: Line, now: float) -> int | None:
        """None when the line is to be left out, else how many of this place were, before it."""
        with self._lock:
            budget = self._budgets.get(place)
            if budget is None:
                budget = self._budgets[place] = Budget(place, now)
            if budget.take(now):
                self._missing.discard(place)
                return budget.settle()
            if not budget.missed:
                self._missing.add(place)
            budget.missed += 1
            budget.line = line
            return None

    def overdue(self, now: float | None) -> list[tuple[int, Line]]:
        """(number, last line) of places that lack lines and said nothing for a while.

        ``now`` None: of all places.
        """
        if not self._missing:
            return []
        found: list[tuple[int, Line]] = []
        with self._lock:
            for place in list(self._missing):
                budget = self._budgets[place]
                if now is None or now - budget.last >= OVERDUE_SECONDS:
                    assert budget.line is not None
                    found.append((budget.settle(), budget.line))
                    self._missing.discard(place)
        return found
