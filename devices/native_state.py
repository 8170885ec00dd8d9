"""What the states of native devices must be: they take only values that were checked here."""

from __future__ import annotations

from vmm._native.console.uart import Uart
from vmm._native.ports.pmtimer import PmTimer
from vmm._native.ports.postport import PostPort
from vmm._native.ports.stopport import StopPort
from vmm.light.state import data, flag, misfit, read_state, unsigned

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from vmm.light.state import Check

INPUT_MAX = 1 << 20
LOOP_MAX = 64
FIELDS: dict[type, dict[str, Check]] = {
    Uart: {
        "ier": unsigned(4),
        "lcr": unsigned(8),
        "mcr": unsigned(5),
        "scr": unsigned(8),
        "dll": unsigned(8),
        "dlm": unsigned(8),
        "thre_pending": flag,
        "loop": data(0, LOOP_MAX),
        "input": data(0, INPUT_MAX),
    },
    StopPort: {},
    PmTimer: {"ticks": unsigned(32)},
    PostPort: {"last": unsigned(8), "count": unsigned(64)},
}


def set_device_state(name: str, device: Any, state: object) -> None:
    """``device.set_state(state)``, checked first where the device is native; StateError."""
    fields = FIELDS.get(type(device))
    try:
        device.set_state(state if fields is None else read_state(name, state, fields))
    except ValueError as error:
        # What only the host's end knows: how much input can wait there.
        raise misfit(name, f" cannot be set: {error}") from error
