"""The kernel's description of its types: made by hand, damaged, and this machine's own."""

from __future__ import annotations

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.btf_builder import ARRAY, TYPEDEF, UNION, Builder
from vmm.errors import GuestError
from vmm.guest.btf import HEADER, MAGIC, START, STOP, Btf

HOST = "/sys/kernel/btf/vmlinux"


def sample() -> Builder:
    made = Builder()
    number = made.number("int")
    made.add("", ARRAY, 0, 0, struct.pack("<III", number, number, 16))
    inner = made.struct("list_head", 16, ("next", number, 0), ("prev", number, 64))
    alias = made.add("list_t", TYPEDEF, 0, inner, b"")
    nameless = made.struct("", 8, ("pid", number, 0), ("tgid", number, 32))
    union = made.struct("", 8, ("", nameless, 0), ("both", number, 0), kind=UNION)
    made.struct(
        "task", 64, ("state", number, 0), ("tasks", alias, 128), ("", union, 256)
    )  # fmt: skip
    made.struct("bits", 4, ("low", number, 4 << 24), ("high", number, 4 << 24 | 8), flag=1)
    return made


def test_members_and_sizes():
    btf = Btf(sample().data())
    assert len(btf) == 8
    assert "task" in btf
    assert btf.size("task") == 64
    offsets = {name: member.offset for name, member in btf.members("task").items()}
    assert offsets == {"state": 0, "tasks": 16, "pid": 32, "tgid": 36, "both": 32}
    assert btf.offset("task", "tasks.prev") == 24
    assert btf.offset("task", "tgid") == 36
    assert btf.offset("bits", "high") == 1
    assert repr(btf) == "<Btf: 8 types, 3 structs by name>"


@pytest.mark.parametrize(
    ("name", "path", "words"),
    [
        ("nobody", "x", "no struct 'nobody'"),
        ("task", "mm", "task has no member 'mm'"),
        ("task", "state.x", "task.state is no struct"),
    ],
)
def test_what_is_not_there(name, path, words):
    with pytest.raises(KeyError, match=words):
        Btf(sample().data()).offset(name, path)


def test_a_struct_in_itself_comes_to_an_end():
    made = Builder()
    made.struct("loop", 8, *[("", 1, 0)] * 8)
    with pytest.raises(GuestError, match="structs without end"):
        Btf(made.data()).members("loop")


def test_a_typedef_of_itself_is_no_struct():
    made = Builder()
    made.add("me", TYPEDEF, 0, 1, b"")
    made.struct("one", 8, ("part", 1, 0))
    with pytest.raises(KeyError, match="no struct"):
        Btf(made.data()).offset("one", "part.x")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no header"),
        (b"\0" * 64, "magic 0x0"),
        (HEADER.pack(MAGIC, 2, 0, 24, 0, 0, 0, 0), "version 2"),
        (HEADER.pack(MAGIC, 1, 0, 24, 0, 1 << 31, 0, 0), "longer than itself"),
        (HEADER.pack(MAGIC, 1, 0, 24, 0, 4, 0, 0) + bytes(4), "has no end"),
        (HEADER.pack(MAGIC, 1, 0, 24, 0, 12, 0, 0) + bytes(12), "kind 0"),
        (HEADER.pack(MAGIC, 1, 0, 24, 0, 12, 0, 0) + struct.pack("<III", 0, 4 << 24 | 9, 0),
         "has no end"),
    ],
)  # fmt: skip
def test_damaged(data, words):
    with pytest.raises(GuestError, match=words):
        Btf(data)


@given(st.data())
def test_no_bytes_make_it_fail_otherwise(data):
    whole = bytearray(sample().data())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        btf = Btf(bytes(whole))
        btf.members("task")
        btf.offset("task", "tasks.prev")
    except (GuestError, KeyError):
        pass


def test_out_of_ram():
    data = sample().data()

    def read(gva, length):
        if gva != 0x1000:
            raise ValueError("leads nowhere")
        return data[:length]

    symbols = {START: 0x1000, STOP: 0x1000 + len(data)}
    assert Btf.from_ram(read, symbols).size("task") == 64
    with pytest.raises(GuestError, match="no BTF"):
        Btf.from_ram(read, {})
    with pytest.raises(GuestError, match="leads nowhere"):
        Btf.from_ram(read, {START: 0x2000, STOP: 0x3000})
    with pytest.raises(GuestError, match="damaged: __start_BTF"):
        Btf.from_ram(read, {START: 0x2000, STOP: 0x2000 + (1 << 40)})


@pytest.mark.skipif(not os.path.exists(HOST), reason=f"{HOST}: this kernel has no BTF")
def test_this_machines_kernel():
    with open(HOST, "rb") as file:
        btf = Btf(file.read())
    assert len(btf) > 10_000
    members = btf.members("task_struct")
    assert {"pid", "comm", "tasks", "mm"} <= set(members)
    assert btf.offset("task_struct", "tasks.next") == members["tasks"].offset
    assert btf.size("list_head") == 16
