from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.light.printable import brief, escape, quote, size_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ä é 漢", "plain ä é 漢"),
        ("a\nb\tc", "a\nb\tc"),
        ("\x1b[31m\x07", "\\x1b[31m\\x07"),
        ("\x9b31m\x85\x80", "\\x9b31m\\x85\\x80"),
        ("\x7f", "\\x7f"),
        ("\u2028\u2029", "\\u2028\\u2029"),
        ("a\u202eb\u2066\u200f", "a\\u202eb\\u2066\\u200f"),
        ("\ufeff\u200b", "\\ufeff\\u200b"),
        ("/\udcff\udc80.img", "/\\xff\\x80.img"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_has_no_glyph_is_made_visible(text, shown):
    assert escape(text) == shown


@given(st.text(st.characters()))
def test_nothing_gets_through(text):
    shown = escape(text)
    assert all(char.isprintable() or char in "\n\t" for char in shown)
    assert escape(shown) == shown
    assert "\n" not in brief(text)
    shown.encode()


def test_long_texts_are_cut_and_say_so():
    told = quote("x" * 70000)
    assert len(told) < 130
    assert "(70000 characters)" in told
    assert quote("short") == "'short'"


@pytest.mark.parametrize(
    ("size", "text"),
    [(1 << 20, "1M"), (3 << 19, "1536K"), (16 << 30, "16G"), (1 << 44, "16T"), (1000, "1000 bytes"),
     (0, "0 bytes")],
)  # fmt: skip
def test_sizes_as_people_write_them(size, text):
    assert size_text(size) == text
