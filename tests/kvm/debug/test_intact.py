"""Breakpoints do not change what the guest does, whatever happens at a hit."""

from __future__ import annotations

import random
import signal

import pytest

import vmm
from tests.support.checked_code import CHECKED, CHECKED_STARTS, WORK, assert_sound
from tests.support.elf_builder import LOAD_GPA
from tests.support.long_mode import ALIAS, long_mode
from tests.support.speed import patience
from tests.support.tiny_guest import tiny_guest
from tests.support.two_vcpus import both_at


def test_one_that_the_first_of_two_takes_away(two, kind):
    """Both hit it at once: the other one goes on as if there had been none."""
    two.memory.write(WORK, CHECKED)
    both_at(two, WORK)
    for _ in range(30):
        point = two.breakpoint(WORK, hardware=kind == "hardware")
        point.action = lambda cpu, point=point: point.remove() or vmm.STOP
        assert two.run(seconds=patience(10)).where is point
        stop = two.run(seconds=0.005)
        assert stop.kind == "timeout", stop
        assert_sound(two)
        assert point.hits == 1


def test_what_an_action_raises_leaves_all_vcpus_intact(checked, kind):
    def fails(cpu):
        raise ZeroDivisionError

    points = [checked.breakpoint(WORK + n, fails, hardware=kind == "hardware") for n in (0, 4)]
    for _ in range(50):
        with pytest.raises(ZeroDivisionError):
            checked.run(seconds=patience(10))
        assert_sound(checked)
    assert sum(point.hits for point in points) == 50


def test_ctrl_c_at_any_moment_leaves_it_intact(checked, patched):
    """A signal's handler raises wherever it wants: between an exit and its answer, too."""
    points = [checked.breakpoint(WORK + n, lambda cpu: None, hardware=False) for n in (0, 4)]

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    moments = random.Random(1)
    try:
        for _ in range(200):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.001 + moments.random() * 0.003)
                assert checked.run(seconds=patience(20)).kind == "interrupted"
            except KeyboardInterrupt:
                pass  # before the run had begun, or behind its end
            assert_sound(checked)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    for point in points:
        point.remove()
    assert checked.run(seconds=0.05).kind == "timeout"
    assert_sound(checked)


def test_a_page_at_two_addresses(tmp_path, software):
    """It is hit by the address that was named, and no harm at the other one."""
    with tiny_guest(tmp_path, CHECKED) as guest:
        long_mode(guest)
        there = guest.breakpoint(ALIAS + LOAD_GPA, hardware=False)
        assert there.kind == software
        assert guest.run(seconds=0.2).kind == "timeout"
        assert there.hits == 0
        assert guest.cpus[0].address - LOAD_GPA in CHECKED_STARTS
        here = guest.breakpoint(LOAD_GPA, hardware=False)
        assert guest.run(seconds=patience(10)).where is here
        guest.cpus[0].regs.rip = ALIAS + LOAD_GPA + 7
        for _ in range(3):
            assert guest.run(seconds=patience(10)).where is there
        here.remove()
        assert guest.run(seconds=patience(10)).where is there
        there.remove()
        assert guest.run(seconds=0.05).kind == "timeout"
        assert guest.cpus[0].address - ALIAS - LOAD_GPA in CHECKED_STARTS
        assert guest.memory.read(LOAD_GPA, len(CHECKED)) == CHECKED
