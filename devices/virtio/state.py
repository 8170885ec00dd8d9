"""The state of a virtio function: registers, MSI-X, queue positions, and the device's own."""

from __future__ import annotations

from devices.virtio.common_config import DRIVER_OK, FEATURES_OK, NEEDS_RESET, NO_VECTOR
from vmm.errors import HostError
from vmm.light.state import data, flag, int_in, many, misfit, read_state, record, unsigned

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from devices.pci.msix import Msix
    from devices.virtio.common_config import CommonConfig, QueueRegisters
    from devices.virtio.device import VirtioDevice
    from vmm.light.state import Check

    class Transport(Protocol):
        """What a virtio function is, seen from here."""

        name: str
        common: CommonConfig
        device: VirtioDevice
        msix: Msix
        active: bool

        @property
        def msix_control(self) -> int:
            """Message control, as configuration space has it."""

        def prepare(self) -> None:
            """The device as its driver set it up, not yet working."""

        def set_active(self, active: bool) -> None:
            """Ring the doorbells at the device, or no more."""

        def stop(self) -> None:
            """No doorbell, no threads, nothing rung."""


REGISTERS = (
    "feature_select",
    "driver_feature_select",
    "accepted",
    "config_vector",
    "status",
    "generation",
)
QUEUE_REGISTERS = ("size", "vector", "enabled", "addresses")


def function_state(function: Transport) -> dict[str, object]:
    """All of it; the caller holds the function's lock, and it is quiesced."""
    common = function.common
    state: dict[str, object] = {name: getattr(common, name) for name in REGISTERS}
    if function.device.broken():
        # Its thread has ended, and only a reset helps.
        state["status"] = common.status | NEEDS_RESET
    return {
        "version": 1,
        "type": function.device.device_type,
        **state,
        "selected": common.registers.selected,
        "active": function.active,
        "queues": [_queue_state(queue) for queue in common.queues],
        "positions": function.device.positions(),
        "msix": function.msix.state(),
        "device": function.device.state(),
    }


def _queue_state(queue: QueueRegisters) -> dict[str, object]:
    state = {name: getattr(queue, name) for name in QUEUE_REGISTERS}
    return {**state, "addresses": list(queue.addresses)}


def set_function_state(function: Transport, state: object) -> None:
    """Put it back; the caller holds the function's lock, and it is quiesced.

    A device that works with the same queues already keeps its threads and its doorbells. One
    whose queues turn out to be impossible is left as after a reset.
    """
    found = read_state(function.name, state, _fields(function))
    _check_sense(function, found)
    common, device = function.common, function.device
    before = _wiring(common) if function.active and not device.broken() else None
    _set_registers(common, found)
    function.msix.set_state(function.msix_control, **found["msix"])
    if not found["active"]:
        if function.active:
            function.stop()
    elif before != _wiring(common):
        _set_up(function)
    device.take_state(found["device"])
    for index, *positions in found["positions"]:
        if index in device.opened:
            device.opened[index].set_positions(*positions)


def _set_up(function: Transport) -> None:
    """A device that works, from one that may have worked otherwise."""
    function.stop()
    try:
        function.prepare()
    except ValueError as error:
        _give_up(function)
        raise misfit(function.name, f" has queues that cannot be used: {error}") from error
    except (OSError, MemoryError) as error:
        _give_up(function)
        raise HostError(
            f"{function.name}: its queues cannot be served: {error}",
            "raise the limit of descriptors (ulimit -n), or close other guests",
        ) from error
    function.set_active(True)


def _give_up(function: Transport) -> None:
    function.device.reset()
    function.common.reset()


def _wiring(common: CommonConfig) -> object:
    """What a device at work is made of."""
    queues = [
        (queue.size, queue.vector, *queue.addresses) for queue in common.queues if queue.enabled
    ]
    on = [queue.enabled for queue in common.queues]
    return common.accepted, common.config_vector, on, queues


def _set_registers(common: CommonConfig, found: dict[str, Any]) -> None:
    for name in REGISTERS:
        setattr(common, name, found[name])
    common.registers.selected = found["selected"]
    for queue, values in zip(common.queues, found["queues"], strict=True):
        for name in QUEUE_REGISTERS:
            setattr(queue, name, values[name])


def _fields(function: Transport) -> dict[str, Check]:
    common, vectors = function.common, len(function.msix.vectors)
    queues = len(common.queues)
    kind = function.device.device_type
    position = int_in(0, 0xFFFF)
    return {
        "type": int_in(kind, kind),
        "feature_select": unsigned(32),
        "driver_feature_select": unsigned(32),
        "accepted": unsigned(64),
        "config_vector": int_in(0, NO_VECTOR),
        "status": unsigned(8),
        "generation": unsigned(8),
        "selected": unsigned(16),
        "active": flag,
        "queues": many(
            record(
                {
                    "size": unsigned(16),
                    "vector": int_in(0, NO_VECTOR),
                    "enabled": flag,
                    "addresses": many(unsigned(64), 3),
                }
            ),
            queues,
        ),
        "positions": many(many(position, 4), 0, queues),
        "msix": record(
            {
                "table": data(16 * vectors),
                "pending": many(int_in(0, vectors - 1), 0, vectors),
            }
        ),
        "device": record({"version": int_in(1, 1), **function.device.state_fields()}),
    }


def _check_sense(function: Transport, found: dict[str, Any]) -> None:
    """Values that go together, as a driver could have brought them about."""
    name, vectors = function.name, len(function.msix.vectors)
    chosen = {"config_vector": found["config_vector"]}
    for index, queue in enumerate(found["queues"]):
        chosen[f"queues[{index}].vector"] = queue["vector"]
    for key, vector in chosen.items():
        if vector >= vectors and vector != NO_VECTOR:
            raise misfit(name, f", {key} is {vector:#x}: {vectors} vectors are there")
    for index, queue in enumerate(found["queues"]):
        size, most = queue["size"], function.common.queues[index].size_max
        if not 0 < size <= most or size & (size - 1):
            raise misfit(name, f", queues[{index}].size is {size}: a power of two up to {most}")
    if found["status"] & FEATURES_OK and found["accepted"] & ~function.common.offered:
        raise misfit(name, f", accepted is {found['accepted']:#x}: not all of it is offered")
    if found["active"] and not found["status"] & DRIVER_OK:
        raise misfit(name, f", active is True with status {found['status']:#x}")
    enabled = {index for index, queue in enumerate(found["queues"]) if queue["enabled"]}
    told = [index for index, *_ in found["positions"]]
    if len(set(told)) != len(told) or not set(told) <= (enabled if found["active"] else set()):
        raise misfit(name, f" has positions of the queues {told}, in use are {sorted(enabled)}")
