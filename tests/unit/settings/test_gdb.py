"""GDB: loopback or a socket's path."""

from __future__ import annotations

import pytest

from vmm.settings.gdb import GdbAddress, parse_gdb
from vmm.settings.parse import BadValue


@pytest.mark.parametrize(
    ("text", "shown", "wait"),
    [
        ("127.0.0.1:1234", "127.0.0.1:1234", False),
        ("127.0.0.2:1,wait", "127.0.0.2:1", True),
        (":1234", "127.0.0.1:1234", False),
        ("localhost:1234", "127.0.0.1:1234", False),
        ("[::1]:1234, wait", "[::1]:1234", True),
        ("/run/vm.gdb", "/run/vm.gdb", False),
        ("./vm.gdb,wait", "./vm.gdb", True),
        ('"/run/a,b"', "/run/a,b", False),
    ],
)
def test_what_is_understood(text, shown, wait):
    found = parse_gdb(text)
    assert isinstance(found, GdbAddress)
    assert (str(found), found.wait) == (shown, wait)


@pytest.mark.parametrize(
    "text",
    ["0.0.0.0:1234", "192.168.1.2:1234", "[::]:1234", "::1:1234", "host:1234", "1234",
     "127.0.0.1:70000", "127.0.0.1:", "127.0.0.300:1", "127.1:5", "/run/$X", "127.0.0.1:1,now", ""],
)  # fmt: skip
def test_what_is_refused(text):
    with pytest.raises(BadValue):
        parse_gdb(text)
