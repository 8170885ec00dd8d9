"""JSON text, against the json package."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.light.jsontext import dumps

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet=st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=12,
)  # fmt: skip


@given(VALUES)
def test_as_the_json_package(value):
    assert dumps(value) == json.dumps(value)
    assert dumps(value, 1) == json.dumps(value, indent=1)


def test_bytes_of_a_path():
    assert dumps(b"\xff".decode(errors="surrogateescape")) == r'"\udcff"'


@pytest.mark.parametrize("value", [b"x", {1: 2}, float("nan"), object()])
def test_what_has_no_form(value):
    with pytest.raises((TypeError, AttributeError)):
        dumps(value)
