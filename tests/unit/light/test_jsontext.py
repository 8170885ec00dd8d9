"""JSON text, against the json package."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.light.jsontext import DEPTH_MAX, dumps, loads

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


def test_objects_come_in():
    assert loads(b'{"a": [1, 2.5, null, "\\ud83d\\ude00"]}') == {"a": [1, 2.5, None, "\U0001f600"]}
    deep = "[" * (DEPTH_MAX - 1) + "]" * (DEPTH_MAX - 1)
    assert loads(f'{{"a": {deep}}}')


@pytest.mark.parametrize(
    "text",
    [
        "", "1", "[]", "null", '"x"', "{", "\0", b"\xff\xfe", '{"a": NaN}', '{"a": -Infinity}',
        '{"a": 1e999}', '{"a": ' + "9" * 5000 + "}", "[" * 4000, '{"a":' * 700 + "1" + "}" * 700,
        '{"a": ' + "[" * 500 + "]" * 500 + "}", "[" * 200_000,
    ],
)  # fmt: skip
def test_what_does_not_come_in(text):
    with pytest.raises(ValueError, match="."):
        loads(text)
