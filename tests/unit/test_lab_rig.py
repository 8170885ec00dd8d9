"""The lab's rig: what is the emulator's flaw and what is not, retries, and how many labs run."""

from __future__ import annotations

import os

import pytest

from tests.lab.rig import flaw, slots, steady
from tests.lab.rig.flaw import LabFlaw, StillWatch, lost_for_good, reason_in, waits_for_itself
from tests.lab.rig.lab import FlawError, LabError
from tests.lab.rig.reach import closed
from tests.lab.rig.vcpus import Vcpus

LOCKED = "vCPU 0: running\n  code at rip: 8b 03 84 c0 75 f8 eb c1\n"
AT_PAUSE = LOCKED.replace("rip: ", "rip: f3 90 ")
OTHER_REGISTER = LOCKED.replace("8b 03", "8b 07")
SEQUENCE = LOCKED.replace("8b 03 84 c0 75 f8", "8b 1d 43 b1 e7 02 f6 c3 01 75 f3")
IDLE = "vCPU 0: halted\n  code at rip: eb 07 0f 00\n"


@pytest.mark.parametrize("report", [LOCKED, AT_PAUSE, OTHER_REGISTER, SEQUENCE])
def test_one_processor_that_waits_for_a_lock(report):
    assert waits_for_itself([report])
    assert waits_for_itself(f"the guest makes no progress: for 20 s no output\n{report}")
    # With a second processor, that one may have the lock.
    assert not waits_for_itself([report, IDLE])


@pytest.mark.parametrize("reports", [[], [IDLE], ["vCPU 0: does not leave the guest"]])
def test_everything_else_is_not_the_emulator_s(reports):
    assert not waits_for_itself(reports)


def test_guests_that_have_ended():
    assert lost_for_good(f"12:00 {flaw.TRIPLE_FAULT}") == flaw.TRIPLE_FAULT
    assert not lost_for_good(flaw.TRIPLE_FAULT, may_triple_fault=True)
    assert lost_for_good(f"BUG: {flaw.ENTRY_FAULT}0x10")
    assert not lost_for_good("Kernel panic - not syncing: Attempted to kill init!")


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(flaw.time, "monotonic", lambda: now[0])
    return now


def look(watch: StillWatch, clock: list[float], times: int) -> None:
    for _ in range(times):
        clock[0] += flaw.LOOK_SECONDS
        watch.check()


def test_a_silent_guest_is_asked_long_after_its_boot(clock):
    watch = StillWatch(lambda: "boot done", lambda: [LOCKED])
    look(watch, clock, flaw.STRIKES - 1)
    with pytest.raises(LabFlaw) as caught:
        look(watch, clock, 1)
    assert caught.value.code == flaw.STATUS


def test_a_guest_that_goes_on_is_left_alone(clock):
    said = [""]

    def talk() -> str:
        said[0] += "."
        return said[0]

    look(StillWatch(talk, lambda: [LOCKED]), clock, 20)
    states = [LOCKED, IDLE] * 20
    look(StillWatch(str, lambda: [states.pop()]), clock, 20)
    look(StillWatch(str, list), clock, 20)


def test_an_instance_that_does_not_tell():
    assert Vcpus(lambda: "").reports(1) == []
    assert Vcpus(lambda: '{"state": "starting"}').reports(1) == []
    assert Vcpus(lambda: '{"sockets": {"control": "/nowhere/control"}}').reports(1) == []


def test_the_reason_is_told(capsys):
    LabFlaw("by the stars (seen twice)")
    told = f"before\n{capsys.readouterr().out}after"
    assert reason_in(told) == "the emulator lost a guest: by the stars (seen twice)"
    assert reason_in("the guest printed 1") == ""


def test_folders_of_root_alone_are_found(tmp_path):
    place = tmp_path / "open" / "closed" / "inside"
    place.mkdir(parents=True)
    for folder, mode in ((place, 0o755), (place.parent, 0o700), (place.parents[1], 0o755)):
        folder.chmod(mode)
    link = tmp_path / "link"
    link.symlink_to(place / "command")
    (place / "command").touch()
    found = closed(link)
    assert place.parent in found
    assert place not in found
    assert place.parents[1] not in found


class FakeLab:
    """Fails as ``errors`` says, then answers; knows how many are there at once."""

    errors: list[Exception] = []
    running = 0

    def __init__(self) -> None:
        type(self).running += 1

    def call(self, function: str) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return function

    def close(self) -> None:
        type(self).running -= 1


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(steady, "Lab", FakeLab)
    steady.take_told()
    labs = [steady.SteadyLab(), steady.SteadyLab()]
    yield FakeLab, labs
    for lab in labs:
        lab.close()
    assert FakeLab.running == 0
    steady.take_told()


def test_each_attempt_that_did_not_count_is_told(fake):
    kind, (lab, _) = fake
    lost = FlawError("job", f"{flaw.TOLD} (it triple-faulted)")
    kind.errors = [lost, LabError("the lab does not answer: timed out\nits console")]
    assert lab.call("job") == "job"
    assert steady.take_told() == [
        "attempt 1 of 3: the emulator lost a guest: it triple-faulted",
        "attempt 2 of 3: the lab was lost (the lab does not answer: timed out)",
    ]


def test_what_is_ours_is_not_tried_again(fake):
    kind, (lab, _) = fake
    kind.errors = [AssertionError("5 interrupts arrived")]
    with pytest.raises(AssertionError):
        lab.call("job")
    assert steady.take_told() == []


def test_three_times_at_most(fake):
    kind, (lab, _) = fake
    kind.errors = [FlawError("job", f"{flaw.TOLD} (again)") for _ in range(4)]
    with pytest.raises(LabError):
        lab.call("job")
    assert len(kind.errors) == 1
    kind.errors = []


def test_one_lab_of_a_process_runs_at_a_time(fake):
    kind, labs = fake
    for lab in (*labs, *labs):
        lab.call("job")
        assert kind.running == 1


def test_no_more_labs_than_processors(tmp_path, monkeypatch):
    monkeypatch.setattr(slots, "cache_directory", lambda: tmp_path)
    monkeypatch.setattr(slots, "count", lambda: 2)
    first, second = slots.Slot(), slots.Slot()
    third = slots.Slot.__new__(slots.Slot)
    assert not third.take()
    emulator = os.dup(second.fd)  # as the lab's QEMU inherits it
    second.close()
    assert not third.take()
    os.close(emulator)
    assert third.take()
    first.close()
    third.close()


def test_a_slot_is_free_again(tmp_path, monkeypatch):
    monkeypatch.setattr(slots, "cache_directory", lambda: tmp_path)
    monkeypatch.setattr(slots, "count", lambda: 1)
    for _ in range(3):
        slots.Slot().close()
