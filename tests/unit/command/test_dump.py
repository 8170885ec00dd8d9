"""`dump` tells how far it is, each few seconds."""

from __future__ import annotations

from vmm.command import dump


def test_what_takes_long_is_told_and_its_seconds_counted(monkeypatch):
    now, told = [100.0], []
    monkeypatch.setattr(dump.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(dump, "complain", told.extend)
    telling = dump.Telling("vm", "/core\n")
    for done in range(5):
        now[0] += 2
        telling.progress(done << 20, 4 << 20)
    assert told == ["vm: /core\\x0a: 1 of 4 MiB", "vm: /core\\x0a: 3 of 4 MiB"]
    assert telling.seconds == 8
