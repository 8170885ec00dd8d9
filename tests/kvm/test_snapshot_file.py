"""The file of a snapshot: what is damaged, cut off or made up is an error that names it."""

from __future__ import annotations

import hashlib
import random
import re
from typing import Any

import pytest

from tests.support.counting_guest import kernel, rounds
from vmm.debug.guest import Guest
from vmm.debug.plain import from_text, to_text
from vmm.debug.snapshotfile import HEADER, MAGIC
from vmm.errors import VmmError

PAGE = 4096
MUTATIONS = 150
ODD = (None, -1, 1 << 70, "text", b"bytes", [], {}, [[]], True, "x" * 5000, 0xFFFFFFFF)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A good file's bytes: 4 MiB of RAM, a disk."""
    folder = tmp_path_factory.mktemp("saved")
    (folder / "disk.img").write_bytes(bytes(1 << 20))
    with Guest(kernel=kernel(folder), memory="4M", system_image=folder / "disk.img") as guest:
        guest.snapshot()
        guest.machine.virtio[1].device.disk.overlay.write(0, b"disk")
        guest.snapshot().save(folder / "file")
    return (folder / "file").read_bytes()


def text_of(data: bytes) -> Any:
    length = HEADER.unpack_from(data)[2]
    return from_text(data[PAGE : PAGE + length])


def made_of(values: Any, data: bytes) -> bytes:
    """A file with that text, and a hash that fits; RAM and disks of ``data``."""
    text = to_text(values)
    _, version, _, ram_at, size, _ = HEADER.unpack_from(data)
    at = (PAGE + len(text) + PAGE - 1) // PAGE * PAGE
    head = HEADER.pack(MAGIC, version, len(text), at, size, hashlib.sha256(text).digest())
    return head.ljust(PAGE, b"\0") + text.ljust(at - PAGE, b"\0") + data[ram_at:]


def refused(path, data: bytes) -> str:
    """What is said of such a file."""
    path.write_bytes(data)
    with pytest.raises(VmmError) as error:
        Guest.load(path).close()
    assert str(path) in str(error.value) or "config" in str(error.value), str(error.value)
    return str(error.value)


def test_the_good_one_loads(saved, tmp_path):
    for data in (saved, made_of(text_of(saved), saved)):
        (tmp_path / "file").write_bytes(data)
        with Guest.load(tmp_path / "file") as guest:
            assert guest.run(seconds=60).kind == "ended"
            assert rounds(guest) == (1, 1)


@pytest.mark.parametrize(
    ("offset", "value", "told"),
    [
        (0, b"X", "no snapshot of ours"),
        (16, b"\x63\0\0\0", "version 99"),
        (24, b"\xff" * 8, "the header has a text of"),
        (32, b"\1", "the header has"),
        (40, b"\0\0\0\0\0\1", "long, .* are needed"),
        (48, b"XXXX", "its hash is another"),
        (PAGE + 100, b"\0", "its hash is another"),
    ],
)
def test_a_damaged_one_is_told(saved, tmp_path, offset, value, told):
    data = bytearray(saved)
    data[offset : offset + len(value)] = value
    text = refused(tmp_path / "file", bytes(data))
    assert re.search(told, text), text


@pytest.mark.parametrize("length", [0, 10, 100, PAGE, PAGE + 500, 1 << 20, -1])
def test_one_cut_off_is_told(saved, tmp_path, length):
    refused(tmp_path / "file", saved[:length])


def test_one_that_is_longer_is_told(saved, tmp_path):
    assert "are needed" in refused(tmp_path / "file", saved + bytes(PAGE))


def test_no_file_and_no_plain_file(tmp_path):
    for path in (tmp_path, "/dev/null"):
        with pytest.raises(VmmError):
            Guest.load(path)


def places(value: Any, at: tuple = ()) -> list[tuple]:
    """The way to every value inside."""
    found = [at] if at else []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        if isinstance(inner, (dict, list)):
            found += places(inner, (*at, key))
        else:
            found.append((*at, key))
    return found


def changed(values: Any, place: tuple, value: Any, remove: bool) -> Any:
    """The same with another value at ``place``, or none."""
    values = from_text(to_text(values))
    inner = values
    for key in place[:-1]:
        inner = inner[key]
    if remove:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return values


def test_made_up_values_are_errors_or_harmless(saved, tmp_path):
    """Whatever stands where: an error with words, or a guest that can be closed."""
    chance = random.Random(13)
    values = text_of(saved)
    everywhere = places(values)
    path = tmp_path / "file"
    refusals = 0
    for _ in range(MUTATIONS):
        place = chance.choice(everywhere)
        value = chance.choice(ODD)
        path.write_bytes(made_of(changed(values, place, value, chance.random() < 0.2), saved))
        try:
            Guest.load(path).close()
        except VmmError as error:
            refusals += 1
            assert len(str(error)) < 2000, place
    assert refusals > MUTATIONS // 3


def test_registers_of_nonsense_end_the_guest_and_no_more(saved, tmp_path):
    chance = random.Random(14)
    path = tmp_path / "file"
    for key in ("regs", "sregs2", "lapic", "events", "xsave", "debugregs", "xcrs", "mp_state"):
        values = text_of(saved)
        size = len(values["vcpus"][0][key])
        values["vcpus"][0][key] = chance.randbytes(size)
        path.write_bytes(made_of(values, saved))
        try:
            with Guest.load(path) as guest:
                guest.run(seconds=1)
        except VmmError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize("text", [b"[" * 100_000, b"{}", b"[]", b'{"config":1.5}', b"\xff", b"NaN"])
def test_text_that_is_none(saved, tmp_path, text):
    _, version, _, _, size, _ = HEADER.unpack_from(saved)
    at = (PAGE + len(text) + PAGE - 1) // PAGE * PAGE
    head = HEADER.pack(MAGIC, version, len(text), at, size, hashlib.sha256(text).digest())
    data = head.ljust(PAGE, b"\0") + text.ljust(at - PAGE, b"\0") + bytes(size)
    refused(tmp_path / "file", data)
