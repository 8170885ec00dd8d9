"""What somebody attached may ask, and the answers. Control thread only.

Whoever asks is this user: still every number is checked before it is used, as a script's mistake
shall cost nobody the guest. Errors are ValueError, OSError or VmmError.
"""

from __future__ import annotations

import fcntl
import os

from vmm.errors import HostError
from vmm.run.attach import trace
from vmm.run.attach.wire import MSRS_MAX, READ_MAX, number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from vmm._native.memory.guestmem import GuestMemory
    from vmm.machine import Machine
    from vmm.run.attach.parts import Answer, Asker
    from vmm.vcpu import Vcpu

# As GuestMemory.backing tells it.
TMPFS = "tmpfs"
SIZE_FIXED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


def ram_descriptor(memory: GuestMemory, write: bool) -> int:
    """A new descriptor of shared RAM, which cannot be mapped writable without ``write``.

    -1 for private RAM. A memfd's size is sealed first: nobody can cut it off under those who map
    it. A file of a tmpfs has no seals: who asked to write can, as any process of that user.
    """
    if memory.fd < 0:
        return -1
    if memory.backing != TMPFS and ~fcntl.fcntl(memory.fd, fcntl.F_GET_SEALS) & SIZE_FIXED:
        fcntl.fcntl(memory.fd, fcntl.F_ADD_SEALS, SIZE_FIXED)
    mode = os.O_RDWR if write else os.O_RDONLY
    return os.open(f"/proc/self/fd/{memory.fd}", mode | os.O_CLOEXEC)


def greeting(machine: Machine) -> dict[str, Any]:
    """What the guest is made of. ``shared``: a descriptor of RAM comes with it."""
    return {
        "regions": machine.memory.regions,
        "shared": machine.memory.fd >= 0,
        "hugepage_size": machine.memory.hugepage_size,
        "vcpus": len(machine.vcpus),
        "kernel": machine.config.kernel_path,
    }


def answer(session: Asker, request: dict[str, Any], data: bytes) -> Answer:
    """(what is told, bytes behind it) for one request."""
    command = request.get("command")
    wanted = COMMANDS.get(command) if isinstance(command, str) else None
    if wanted is None:
        raise ValueError(f"unknown command {str(command)[:20]!r}; known: {', '.join(COMMANDS)}")
    return wanted(session, request, data)


def _vcpu(session: Asker, request: dict[str, Any]) -> Vcpu:
    vcpus = session.machine.vcpus
    return vcpus[number(request, "cpu", 0, len(vcpus) - 1)]


def _look(vcpu: Vcpu, look: Callable[[], Any]) -> Any:
    found = vcpu.look(look)
    if found is None:
        raise HostError(f"vCPU {vcpu.index} does not leave the guest", "it may just be ending")
    return found


def _writes(session: Asker) -> None:
    if not session.write:
        raise ValueError("attached to read only: attach with write=True")


def read(session: Asker, request: dict[str, Any], data: bytes) -> Answer:
    """Guest RAM; of zeros only their number is told."""
    length = number(request, "length", 1, READ_MAX)
    found = session.machine.memory.read(number(request, "gpa", 0, (1 << 64) - 1), length)
    return ({"zeros": length}, b"") if found == bytes(length) else ({}, found)


def write(session: Asker, request: dict[str, Any], data: bytes) -> Answer:
    """Bytes into guest RAM."""
    _writes(session)
    session.machine.memory.write(number(request, "gpa", 0, (1 << 64) - 1), data)
    return {}, b""


def registers(session: Asker, request: dict[str, Any], data: bytes) -> Answer:
    """Both sets of registers of a vCPU, of one moment."""
    vcpu = _vcpu(session, request)
    regs, sregs = _look(vcpu, lambda: (vcpu.fd.get_regs(), vcpu.fd.get_sregs()))
    return {"regs": regs, "sregs": sregs}, b""


def set_registers(session: Asker, request: dict[str, Any], data: bytes) -> Answer:
    """``regs`` or ``sregs`` of a vCPU, those that are named, while the guest is held."""
    vcpu = _vcpu(session, request)
    _changes_vcpu(session)
    values = request.get("regs")
    if isinstance(values, dict):
        vcpu.fd.set_regs({**vcpu.fd.get_regs(), **values})
    values = request.get("sregs")
    if isinstance(values, dict):
        vcpu.fd.set_sregs(values)
    return {}, b""


def _changes_vcpu(session: Asker) -> None:
    _writes(session)
    if not session.owner.holds(session):
        raise ValueError("the guest runs: pause() it before its registers are changed")


def msrs(session: Asker, request: dict[str, Any], data: bytes) -> Answer:
    """Values of some MSRs, as far as KVM knows them."""
    vcpu = _vcpu(session, request)
    wanted = request.get("indices")
    if not isinstance(wanted, list) or not 0 < len(wanted) <= MSRS_MAX:
        raise ValueError(f"indices: a list of 1 to {MSRS_MAX} is needed")
    indices = [number({"index": index}, "index", 0, (1 << 32) - 1) for index in wanted]
    return {"values": _look(vcpu, lambda: vcpu.fd.get_msrs(indices))}, b""


def set_msr(session: Asker, request: dict[str, Any], data: bytes) -> Answer:
    """One MSR, while the guest is held; ``done`` is 0 when KVM refuses the value."""
    vcpu = _vcpu(session, request)
    _changes_vcpu(session)
    index = number(request, "index", 0, (1 << 32) - 1)
    return {"done": vcpu.fd.set_msrs([(index, number(request, "value", 0, (1 << 64) - 1))])}, b""


def state(session: Asker, request: dict[str, Any], data: bytes) -> Answer:
    """``what``: "xsave" or "lapic" as bytes, "events" as numbers."""
    vcpu = _vcpu(session, request)
    what = request.get("what")
    if what == "events":
        return {"events": _look(vcpu, vcpu.fd.get_vcpu_events)}, b""
    if what == "xsave":
        return {}, bytes(_look(vcpu, vcpu.fd.get_xsave))
    if what == "lapic":
        return {}, bytes(_look(vcpu, vcpu.fd.get_lapic))
    raise ValueError(f"what={str(what)[:20]!r}: events, xsave or lapic")


def hold(session: Asker, request: dict[str, Any], data: bytes) -> Answer:
    """The guest stands still until let_go, or the end of the connection."""
    session.owner.hold(session)
    return {}, b""


def let_go(session: Asker, request: dict[str, Any], data: bytes) -> Answer:
    """The guest goes on, unless somebody else holds it; ``held``: it was held until now."""
    held = session.owner.holds(session)
    session.owner.let_go(session)
    return {"held": held}, b""


def ping(session: Asker, request: dict[str, Any], data: bytes) -> Answer:
    """Whether the guest stands still for the one who asks."""
    return {"held": session.owner.holds(session)}, b""


COMMANDS: dict[str, Callable[[Asker, dict[str, Any], bytes], Answer]] = {
    "read": read,
    "write": write,
    "registers": registers,
    "set_registers": set_registers,
    "msrs": msrs,
    "set_msr": set_msr,
    "state": state,
    "hold": hold,
    "let_go": let_go,
    "ping": ping,
    "trace_start": trace.start,
    "trace_counts": trace.counts,
    "trace_take": trace.take,
    "trace_stop": trace.end,
    "trace_names": trace.names,
}
