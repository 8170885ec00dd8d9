"""What the tests of breakpoints share: each runs with every kind that this KVM does."""

from __future__ import annotations

import pytest

from vmm.debug.abilities import ABILITIES


@pytest.fixture(params=["hardware", "port", "step"])
def kind(request, monkeypatch):
    """How the breakpoints of a test are made."""
    if not getattr(ABILITIES, request.param):
        pytest.skip(f"this KVM does not do {request.param} breakpoints")
    if request.param == "step":
        monkeypatch.setitem(ABILITIES.__dict__, "port", False)
        monkeypatch.setitem(ABILITIES.__dict__, "int3", False)
    return request.param
