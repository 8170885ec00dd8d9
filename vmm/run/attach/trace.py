"""Exits of all vCPUs for somebody attached: native rings here, emptied by his requests.

What finds no room is counted, never lost silently. Control thread only.
"""

from __future__ import annotations

from vmm._native.kvm.tracering import NO_RIP, RECORD_SIZE, TraceRing, rip_mode
from vmm.errors import BusyError
from vmm.run.attach.wire import READ_MAX, TRACE_BYTES_MAX, number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from vmm.run.attach.parts import Answer, Asker


def start(session: Asker, request: dict[str, Any], data: bytes) -> Answer:
    """Fresh rings of ``size`` records for each vCPU; ``rip``: where the guest was at each exit."""
    size, vcpus = request.get("size"), session.machine.vcpus
    if type(size) is not int or not 2 <= size * len(vcpus) * RECORD_SIZE <= TRACE_BYTES_MAX:
        raise ValueError(
            f"size={str(size)[:20]}: rings for {len(vcpus)} vCPUs have room for "
            f"{TRACE_BYTES_MAX // RECORD_SIZE} records in all"
        )
    owner = session.owner
    if owner.tracer not in (None, session):
        raise BusyError(f"{owner.tracer.name} traces this guest", "one at a time can")
    mode = rip_mode(session.machine.vm.fd) if request.get("rip") is True else NO_RIP
    rings = [TraceRing(size, mode) for _ in vcpus]
    owner.tracer, session.rings = session, rings
    for vcpu, ring in zip(vcpus, rings, strict=True):
        vcpu.loop.set_trace(ring)
    return {}, b""


def take(session: Asker, request: dict[str, Any], data: bytes) -> Answer:
    """The oldest records of one vCPU, of at most ``length`` bytes."""
    rings = _rings(session)
    ring = rings[number(request, "cpu", 0, len(rings) - 1)]
    length = number(request, "length", 1, READ_MAX)
    records = bytearray(min(ring.waiting, length // RECORD_SIZE) * RECORD_SIZE)
    if records:
        ring.read_into(records)
    return {}, bytes(records)


def _rings(session: Asker) -> list[TraceRing]:
    if not session.rings:
        raise ValueError("nothing is traced: start first")
    return session.rings


def counts(session: Asker, request: dict[str, Any], data: bytes) -> Answer:
    """How many records wait in each ring, and how many found no room."""
    return _counts(_rings(session)), b""


def _counts(rings: list[TraceRing]) -> dict[str, Any]:
    return {
        "waiting": [ring.waiting for ring in rings],
        "dropped": [ring.dropped for ring in rings],
    }


def end(session: Asker, request: dict[str, Any], data: bytes) -> Answer:
    """No more exits are recorded; what waits in the rings can still be taken."""
    _switch_off(session)
    return _counts(session.rings), b""


def _switch_off(session: Asker) -> None:
    if session.owner.tracer is session:
        session.owner.tracer = None
        for vcpu in session.machine.vcpus:
            vcpu.loop.set_trace(None)


def stop(session: Asker) -> None:
    """The connection is gone: nobody takes any more."""
    _switch_off(session)
    session.rings = []


def names(session: Asker, request: dict[str, Any], data: bytes) -> Answer:
    """What answers where on the buses, and which of it are virtio functions."""
    machine = session.machine
    functions = [[function.name, function.bar.index] for function in machine.virtio]
    return {
        "ports": machine.pio.ranges(),
        "memory": machine.mmio.ranges(),
        "virtio": functions,
    }, b""
