"""What is left of the keyboard controller: ports 0x61 to 0x64, and reset by command 0xfe."""

from __future__ import annotations

from vmm._native.kvm import bus

# Offsets from port 0x61.
SYSTEM_CONTROL = 0
COMMAND = 3
# Bit 5: output of timer 2. Always set, so that Linux's calibration by it ends at once.
TIMER_2_OUTPUT = 0x20
PULSE_RESET = 0xFE


class I8042:
    """No keyboard behind it; only the reset line works."""

    def read(self, offset: int, size: int) -> int:
        """Port 0x61 shows timer 2 done, 0x64 an idle controller; the others are not decoded."""
        if size == 1 and offset == SYSTEM_CONTROL:
            return TIMER_2_OUTPUT
        if size == 1 and offset == COMMAND:
            return 0
        return (1 << 8 * size) - 1

    def write(self, offset: int, value: int, size: int) -> int:
        """0xfe to port 0x64 resets the machine."""
        if size == 1 and offset == COMMAND and value == PULSE_RESET:
            return bus.RESET
        return bus.CONTINUE

    def state(self) -> dict[str, object]:
        """Nothing is kept."""
        return {"version": 1}

    def set_state(self, state: object) -> None:
        """A state() again; StateError when it does not fit."""
        from vmm.light.state import read_state

        read_state("i8042", state, {})
