"""Breakpoints by int3, on every KVM: where it reports none, a layer above it does."""

from __future__ import annotations

from tests.support.int3 import pytest_with_int3

HERE = "tests/kvm/debug"
FILES = ("test_breakpoints", "test_intact", "test_gdb", "test_gdb_source")
# Of the tests of all kinds of breakpoints, those that int3 has a part in.
WANTED = "int3 or ten_thousand or memory_never or rewrites or software_breakpoints or source"


def test_int3(tmp_path):
    files = [f"{HERE}/{name}.py" for name in ("int3_tests", *FILES)]
    code, text = pytest_with_int3(tmp_path, "-k", f"({WANTED}) and not test_int3", *files)
    assert code == 0, text
    assert "passed" in text, text
    assert "skipped" not in text, text
