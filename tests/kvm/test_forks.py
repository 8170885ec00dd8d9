"""What a fork has of its snapshot and of its family: the first one, and those behind it."""

from __future__ import annotations

from tests.support.counting_guest import kernel
from tests.support.elf_builder import LOAD_GPA, with_symbols
from tests.support.guest_asm import Program
from vmm import layout
from vmm.debug.guest import Guest
from vmm.debug.machinestate import MachineState


def without_time(states: dict) -> dict:
    return {**states, "PM timer": None}


def test_each_fork_s_devices_are_those_of_the_snapshot(tmp_path):
    program = Program().out(0x80, 0x5A).out(layout.COM1_PORT + 7, 0x77)
    end = LOAD_GPA + len(program.code)
    with Guest(kernel=kernel(tmp_path, program.power_off()), memory="4M") as guest:
        assert guest.run(until=end, seconds=60).address == end
        guest.serial.write("typed")
        taken = guest.snapshot()
        for _ in range(3):
            with taken.fork() as fork, fork.fork() as grandchild:
                for one in (fork, grandchild):
                    found = MachineState(one.machine).state()
                    assert without_time(found) == without_time(
                        {**taken.devices, "GED": {"version": 1, "pending": 16}}
                    )
                    assert found["POST code port"]["last"] == 0x5A
                # Nobody watched what was used before this.
                assert fork.run(seconds=60).kind == "ended"
                fork.machine.pio.write(0x80, 1, 1)
                fork.restore(taken)
                found = MachineState(fork.machine).state()
                assert without_time(found) == without_time(taken.devices)


def test_forks_know_the_symbols_of_their_family(tmp_path):
    path = kernel(tmp_path)
    path.write_bytes(with_symbols(path.read_bytes(), {"start": LOAD_GPA}))
    with Guest(kernel=path, memory="4M") as guest:
        taken = guest.snapshot()
        with taken.fork() as first:
            assert first.run(seconds=60).symbol.startswith("start+")
        path.unlink()
        with taken.fork() as second:
            assert second.symbols["start"] == LOAD_GPA
        assert guest.symbols["start"] == LOAD_GPA
