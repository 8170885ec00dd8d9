"""Credentials that a service has for its guest: which, in which form, and what is refused."""

from __future__ import annotations

import os
from base64 import b64encode

import pytest

from vmm.boot.smbios import ENTRY_SIZE, build_smbios
from vmm.errors import ConfigError
from vmm.host.credentials import credential_strings
from vmm.layout import SMBIOS_GPA, SMBIOS_TEXT_MAX

BINARY = bytes(range(256))


def test_those_of_the_guest_in_their_order(tmp_path):
    (tmp_path / "guest.z").write_bytes(BINARY)
    (tmp_path / "guest.passwd.hashed-password.root").write_bytes(b"$y$x\n")
    (tmp_path / "tls.key").write_bytes(b"the service's own")
    (tmp_path / "guest.empty").write_bytes(b"")
    first = b64encode(b"$y$x\n").decode()
    last = b64encode(BINARY).decode()
    assert credential_strings(str(tmp_path)) == [
        "io.systemd.credential.binary:empty=",
        f"io.systemd.credential.binary:passwd.hashed-password.root={first}",
        f"io.systemd.credential.binary:z={last}",
    ]


@pytest.mark.parametrize("name", ["guest.", "guest.a=b", "guest.a b", "guest.ä", "guest.a\nb"])
def test_names_that_the_guest_could_not_read(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ConfigError, match="the guest's name of the credential"):
        credential_strings(str(tmp_path))


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read /nonexistent: No such file"):
        credential_strings("/nonexistent")
    os.mkfifo(tmp_path / "guest.pipe")
    with pytest.raises(ConfigError, match=r"guest\.pipe is not a regular file"):
        credential_strings(str(tmp_path))
    os.unlink(tmp_path / "guest.pipe")
    (tmp_path / "guest.link").symlink_to("nowhere")
    with pytest.raises(ConfigError, match=r"cannot read .*guest\.link: No such file"):
        credential_strings(str(tmp_path))


def test_more_than_fits_is_refused_and_what_fits_is_below_1_mib(tmp_path):
    room = SMBIOS_TEXT_MAX // 4 * 3
    (tmp_path / "guest.a").write_bytes(bytes(room))
    with pytest.raises(ConfigError, match=f"{SMBIOS_TEXT_MAX} fit"):
        credential_strings(str(tmp_path))
    (tmp_path / "guest.a").write_bytes(bytes(room - 60))
    table = build_smbios(strings=credential_strings(str(tmp_path)))
    assert SMBIOS_GPA + len(table) <= 1 << 20


def test_each_structure_counts_its_strings():
    strings = [f"text {n}" for n in range(300)]
    table = build_smbios(strings=strings)[ENTRY_SIZE:]
    found = []
    while table[0] != 127:
        length = table[1]
        text, _, rest = table[length:].partition(b"\0\0")
        if table[0] == 11:
            lines = text.decode().split("\0")
            assert table[4] == len(lines)
            found += lines
        table = rest
    assert found == strings
