"""ACPI sleep and reset register, and the register behind the GED with the power button.

Source: ACPI 6.5, 4.8.3.7 (sleep control), 4.8.3.6 (reset register), 5.6.9 (GED).
"""

from __future__ import annotations

from _thread import allocate_lock

from vmm._native.kvm import bus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.irq import IrqLine

RESET = 0x01
# SLP_TYP 5 and SLP_EN.
POWER_OFF = 5 << 2 | 1 << 5
POWER_BUTTON = 8
NEW_GENERATION = 16


class AcpiRegisters:
    """Port 0x600: sleep control, sleep status and reset register in one byte."""

    def read(self, offset: int, size: int) -> int:
        """Reads 0: the machine never wakes from a sleep state."""
        return 0 if size == 1 else (1 << 8 * size) - 1

    def write(self, offset: int, value: int, size: int) -> int:
        """Power off (S5) or reset; other values do nothing."""
        if size != 1:
            return bus.CONTINUE
        if value == POWER_OFF:
            return bus.SHUTDOWN
        return bus.RESET if value == RESET else bus.CONTINUE

    def state(self) -> dict[str, object]:
        """Nothing is kept."""
        return {"version": 1}

    def set_state(self, state: object) -> None:
        """A state() again; StateError when it does not fit."""
        from vmm.light.state import read_state

        read_state("ACPI registers", state, {})


class Ged:
    """The byte of pending events; reading clears it. ``_lock`` holds the byte.

    The control thread presses the button while vCPUs read: no press may be lost between them.
    """

    def __init__(self, line: IrqLine) -> None:
        self._lock = allocate_lock()
        self._line = line
        self._pending = 0
        self._raised = False

    def power_button(self) -> None:
        """Press the button; any thread."""
        with self._lock:
            self._pending |= POWER_BUTTON
            self._raised = True
        self._line.pulse()

    def new_generation(self, heard: bool) -> None:
        """Tell the guest that its generation id is another: it is a fork; any thread.

        Without ``heard`` (its pin is masked: no driver is there) the interrupt is left out.
        """
        with self._lock:
            self._pending |= NEW_GENERATION
            self._raised = heard
        if heard:
            self._line.pulse()

    def read(self, offset: int, size: int) -> int:
        """Pending events, which are forgotten."""
        with self._lock:
            value, self._pending = self._pending, 0
        return value

    def write(self, offset: int, value: int, size: int) -> None:
        """Nothing to write."""

    def quiesce(self) -> None:
        """Nothing of the line is under way afterwards; nobody presses meanwhile."""
        if self._raised:
            self._raised = False
            self._line.settle()

    def mark(self) -> object:
        """Another value after a press."""
        return self._pending

    def state(self) -> dict[str, object]:
        """The events that the guest has not read yet."""
        return {"version": 1, "pending": self._pending}

    def set_state(self, state: object) -> None:
        """A state() again, without raising the line; StateError when it does not fit."""
        from vmm.light.state import int_in, read_state

        found = read_state("GED", state, {"pending": int_in(0, POWER_BUTTON | NEW_GENERATION)})
        with self._lock:
            self._pending = found["pending"]
