"""Kinds of breakpoints, as far as this KVM does them, and guests to try them on."""

from __future__ import annotations

import pytest

from tests.support.checked_code import CHECKED, WORK
from tests.support.guest_asm import Program
from tests.support.tiny_guest import tiny_guest
from tests.support.two_vcpus import AP_CODE, both_at, wake_others
from vmm.debug.abilities import ABILITIES

SOFTWARE = ("int3", "port", "step")


def only(kind: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Software breakpoints are of this kind, where the KVM does them."""
    if not getattr(ABILITIES, kind):
        pytest.skip(f"this KVM does not do {kind} breakpoints")
    for better in SOFTWARE[: SOFTWARE.index(kind)] if kind in SOFTWARE else ():
        monkeypatch.setitem(ABILITIES.__dict__, better, False)
    return kind


@pytest.fixture(params=["hardware", *SOFTWARE])
def kind(request, monkeypatch):
    return only(request.param, monkeypatch)


@pytest.fixture(params=SOFTWARE)
def software(request, monkeypatch):
    return only(request.param, monkeypatch)


@pytest.fixture(params=["int3", "port"])
def patched(request, monkeypatch):
    """Kinds that put something into the guest's code."""
    return only(request.param, monkeypatch)


@pytest.fixture
def two(tmp_path):
    """Two vCPUs, to be set to work."""
    program = wake_others(Program()).raw("ebfe")
    with tiny_guest(tmp_path, bytes(program.code), cpu_count=2) as guest:
        guest.memory.write(AP_CODE, bytes.fromhex("ebfe"))
        assert guest.run(seconds=0.3).kind == "timeout"
        yield guest


@pytest.fixture(params=[1, 2], ids=["alone", "two"])
def checked(request, tmp_path):
    """One vCPU, or two, in code that ends elsewhere when an instruction is left out."""
    program = wake_others(Program()).raw("ebfe")
    with tiny_guest(tmp_path, bytes(program.code), cpu_count=request.param) as guest:
        guest.memory.write(AP_CODE, bytes.fromhex("ebfe"))
        guest.memory.write(WORK, CHECKED)
        assert guest.run(seconds=0.3).kind == "timeout"
        if request.param == 2:
            both_at(guest, WORK)
        guest.cpus[0].regs.rip = WORK
        yield guest
