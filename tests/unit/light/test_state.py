"""States read back: what does not fit is told by device, key and value."""

from __future__ import annotations

import pytest

from vmm.errors import StateError, VmmError
from vmm.light.state import (
    data,
    exactly,
    flag,
    int_in,
    many,
    maybe,
    read_state,
    record,
    unsigned,
)

FIELDS = {
    "small": int_in(2, 5),
    "on": flag,
    "bytes": data(1, 4),
    "name": exactly("disk0"),
    "gpa": maybe(unsigned(64)),
    "list": many(unsigned(8), 0, 2),
    "inner": record({"deep": many(record({"x": unsigned(4)}), 1)}),
}
GOOD = {
    "version": 1, "small": 2, "on": True, "bytes": b"ab", "name": "disk0", "gpa": None,
    "list": [1, 255], "inner": {"deep": [{"x": 15}]},
}  # fmt: skip


def test_what_fits_comes_back():
    found = read_state("device", GOOD, FIELDS)
    assert found == GOOD
    assert found["inner"] is not GOOD["inner"]
    assert read_state("device", {**GOOD, "gpa": (1 << 64) - 1}, FIELDS)["gpa"] == (1 << 64) - 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"small": 6}, "device: the state, small is 0x6: a number from 0x2 to 0x5 is needed"),
        ({"small": True}, "small is True"),
        ({"small": 2.0}, "small is 2.0"),
        ({"small": 1 << 9000}, "small is 0x1000"),
        ({"on": 1}, "on is 0x1: True or False"),
        ({"bytes": b""}, "bytes is 0 bytes: 1 to 4 bytes"),
        ({"bytes": "ab"}, "bytes is 'ab'"),
        ({"bytes": bytearray(2)}, "bytes is 2 bytes"),
        ({"name": "disk1"}, "'disk0' is needed"),
        ({"name": "x" * 1000}, "..."),
        ({"gpa": 1 << 64}, "gpa is 0x1"),
        ({"list": [1, 2, 3]}, "list is a list of 3: a list of 0 to 2"),
        ({"list": (1,)}, "list is a tuple of 1"),
        ({"list": [1, -1]}, "list[1] is -0x1"),
        ({"inner": {"deep": [{"x": 16}]}}, "inner.deep[0].x is 0x10"),
        ({"inner": {"deep": [{}]}}, "inner.deep[0].x is None: it is missing"),
        ({"version": 2}, "version is 0x2"),
        ({"more": object()}, "'more' is a object: no such key"),
        ({3: 4}, "0x3 is 0x4: no such key"),
    ],
)
def test_what_does_not_fit_is_told(change, told):
    with pytest.raises(StateError) as caught:
        read_state("device", {**GOOD, **change}, FIELDS)
    assert told in str(caught.value)
    assert isinstance(caught.value, VmmError)
    assert caught.value.remedy


@pytest.mark.parametrize("state", [None, [], 1, "x", {}, {"version": 1}])
def test_no_state_at_all(state):
    with pytest.raises(StateError, match="device"):
        read_state("device", state, FIELDS)
