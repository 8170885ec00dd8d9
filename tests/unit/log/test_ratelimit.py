"""One rate limit for each place in the code, whoever writes there and however often."""

from __future__ import annotations

import threading
import time

import pytest

from vmm.log import ratelimit
from vmm.log.hub import DEBUG, ERROR, INFO, WARNING, Logger, LogHub, hub
from vmm.log.ratelimit import RateLimit

LINE = (WARNING, "test", "text")


class Lines:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, level, name, message, fields=()) -> None:
        self.lines.append(message)

    def reopen(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def lines(monkeypatch):
    """The process's hub with an empty memory; what it delivers."""
    sink = Lines()
    monkeypatch.setattr(hub, "sinks", [sink])
    monkeypatch.setattr(hub, "level", DEBUG)
    monkeypatch.setattr(hub, "context", ())
    monkeypatch.setattr(hub, "_limit", RateLimit())
    return sink.lines


def elsewhere(work) -> None:
    """As a vCPU's thread."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def place(name: str = "here.py", level: int = WARNING, control: bool = False):
    return (name, 1, level, control)


def let_through(limit: RateLimit, where, seconds: float, step: float, start: float = 0) -> list:
    """(time, left out before it) of each line written, asked every ``step`` seconds."""
    found = []
    for n in range(round(seconds / step)):
        now = start + n * step
        missed = limit.ask(where, LINE, now)
        if missed is not None:
            found.append((now, missed))
    return found


def test_a_flood_of_an_hour_is_some_hundred_lines():
    limit = RateLimit()
    found = let_through(limit, place(), 3600, 0.01)
    assert 60 <= len(found) <= 100
    assert [missed for _, missed in found[: ratelimit.BURST]] == [0] * ratelimit.BURST
    assert sum(missed for _, missed in found) + len(found) >= 360_000 - 100 * 61
    assert found[ratelimit.BURST][0] <= 1.1


def test_a_line_a_second_is_never_left_out():
    assert len(let_through(RateLimit(), place(), 1000, 1.0)) == 1000


def test_a_place_that_was_silent_starts_over():
    limit = RateLimit()
    let_through(limit, place(), 600, 0.01)
    later = let_through(limit, place(), 1, 0.05, start=700)
    assert len(later) == ratelimit.BURST


def test_places_do_not_share_a_budget(lines):
    log = Logger("test")

    def flood() -> None:
        for _ in range(1000):
            log.warning("one")
        log.warning("other")

    elsewhere(flood)
    assert lines.count("one") == ratelimit.BURST
    assert "other" in lines


def test_the_control_thread_keeps_its_own_budget(lines):
    log = Logger("test")

    def many(count: int) -> None:
        for n in range(count):
            log.error(f"line {n}")

    elsewhere(lambda: many(5000))
    lines.clear()
    many(40)
    assert lines == [f"line {n}" for n in range(40)]


def test_what_was_left_out_is_told_with_the_next_line(lines, monkeypatch):
    log = Logger("test")
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def say(text: str) -> None:
        log.warning(text)

    elsewhere(lambda: [say(f"first {n}\nsecond") for n in range(15)])
    clock[0] += 1.0
    elsewhere(lambda: say("again\nsecond"))
    assert lines[-1] == "again (5 more suppressed)\nsecond"


def test_what_was_left_out_is_told_by_others_and_at_the_end(lines, monkeypatch):
    log = Logger("test")
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    elsewhere(lambda: [log.warning(f"flood {n}") for n in range(15)])
    clock[0] += 3.0
    log.info("the guest powered itself off")
    assert lines[-1] == "5 more suppressed, the last: flood 14"
    elsewhere(lambda: [log.error(f"flood {n}") for n in range(12)])
    hub.configure([], debug=False)
    assert lines[-1] == "2 more suppressed, the last: flood 11"


@pytest.mark.parametrize(("level", "most"), [(DEBUG, 150), (INFO, 12), (ERROR, 12)])
def test_each_level_has_an_end(level, most):
    assert len(let_through(RateLimit(), place(level=level), 1, 0.0001)) <= most


def test_threads_that_write_at_once_lose_no_count():
    own = LogHub()
    sink = Lines()
    own.sinks = [sink]

    def log(text: str) -> None:
        own.emit(WARNING, "test", text)

    def flood() -> None:
        for _ in range(2000):
            log("x")

    threads = [threading.Thread(target=flood) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    own.configure([], debug=False)
    told = [line for line in sink.lines if "suppressed" in line]
    counted = sum(int(line.split("(")[-1].split()[0]) for line in told)
    assert counted + sum(not line.startswith(tuple("0123456789")) for line in sink.lines) == 8000


def test_a_line_that_is_left_out_costs_little(lines):
    log = Logger("test")

    def flood() -> None:
        started = time.thread_time()
        for _ in range(20_000):
            log.warning("x")
        spent.append((time.thread_time() - started) / 20_000)

    spent: list[float] = []
    elsewhere(flood)
    assert spent[0] < 20e-6
