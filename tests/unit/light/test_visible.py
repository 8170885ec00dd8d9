"""Nothing that is printed steers a terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.light.printable import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, \u00e4 \u4e2d", "plain, \u00e4 \u4e2d"),
        ("\x1b[2J\r\n\t\0", r"\x1b[2J\x0d\x0a\x09\x00"),
        ("\x7f\x9b31m", r"\x7f\x9b31m"),
        ("a\u202eb\u2066c\u2028", r"a\u202eb\u2066c\u2028"),
        ("\udcff", r"\xff"),
        (["\x1b"], r"['\x1b']"),
    ],
)
def test_what_is_shown(text, shown):
    assert visible(text) == shown


@given(st.text(alphabet=st.characters(), max_size=50))
def test_it_can_always_be_printed(text):
    assert visible(text).isprintable()
    visible(text).encode()


def test_it_ends():
    assert visible("x" * 100_000, 10) == "x" * 10 + "..."
