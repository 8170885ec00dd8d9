"""Parts of examples that need no guest: a list of processes out of bytes, a disk that fails."""

from __future__ import annotations

import importlib
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.btf_builder import Builder
from vmm.errors import GuestError
from vmm.guest.btf import START, STOP

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
BASE = 0xFFFFFFFF81000000
TASK, TASK_BYTES = BASE + 0x1000, 128


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


class Memory:
    """Bytes at BASE, as a vCPU's memory."""

    def __init__(self) -> None:
        self.data = bytearray(1 << 16)

    def put(self, gva, data):
        self.data[gva - BASE : gva - BASE + len(data)] = data

    def read(self, gva, length):
        if not BASE <= gva <= gva + length <= BASE + len(self.data):
            raise ValueError(f"gva {gva:#x} leads nowhere")
        return bytes(self.data[gva - BASE : gva - BASE + length])

    def read_u32(self, gva):
        return int.from_bytes(self.read(gva, 4), "little")

    def read_u64(self, gva):
        return int.from_bytes(self.read(gva, 8), "little")

    def read_string(self, gva, limit):
        return self.read(gva, limit).partition(b"\0")[0].decode()


def guest_with(tasks, last=None):
    """A guest of (tgid, number of the parent, name, mm) tasks; ``last``: where the list goes on."""
    types = Builder()
    number = types.number("int")
    links = types.struct("list_head", 16, ("next", number, 0), ("prev", number, 64))
    types.struct(
        "task_struct", TASK_BYTES, ("tgid", number, 0), ("tasks", links, 16 * 8),
        ("mm", number, 32 * 8), ("real_parent", number, 40 * 8), ("comm", number, 48 * 8),
    )  # fmt: skip
    memory = Memory()
    described = types.data()
    memory.put(BASE, described)
    for index, (tgid, parent, name, mm) in enumerate(tasks):
        at = TASK + index * TASK_BYTES
        following = TASK + (index + 1) % len(tasks) * TASK_BYTES
        if last is not None and index == len(tasks) - 1:
            following = last
        memory.put(at, struct.pack("<I", tgid))
        memory.put(at + 16, struct.pack("<Q", following + 16))
        memory.put(at + 32, struct.pack("<QQ", mm, TASK + parent * TASK_BYTES))
        memory.put(at + 48, name.encode())
    symbols = {START: BASE, STOP: BASE + len(described), "init_task": TASK}
    return SimpleNamespace(cpus=[SimpleNamespace(memory=memory)], symbols=symbols)


TASKS = [(0, 0, "swapper/0", 0), (1, 0, "init", 0x1234), (2, 0, "kthreadd", 0), (9, 1, "sh", 1)]


def test_the_list_of_processes(example):
    found = list(example("list_processes").processes(guest_with(TASKS)))
    assert found == [
        (0, 0, "swapper/0", True), (1, 0, "init", False), (2, 0, "kthreadd", True),
        (9, 1, "sh", False),
    ]  # fmt: skip


def test_a_list_that_never_comes_back_to_its_begin_has_an_end(example, monkeypatch):
    listing = example("list_processes")
    monkeypatch.setattr(listing, "TASKS_MAX", 50)
    assert len(list(listing.processes(guest_with(TASKS, last=TASK + TASK_BYTES)))) == 50
    with pytest.raises(ValueError, match="leads nowhere"):
        list(listing.processes(guest_with(TASKS, last=0x1000)))


def test_a_kernel_that_does_not_describe_its_types(example):
    guest = guest_with(TASKS)
    del guest.symbols[START]
    with pytest.raises(GuestError, match="no BTF"):
        list(example("list_processes").processes(guest))


class Request:
    """One request of a driver: what it sends, and the room for the answer."""

    def __init__(self, kind, sector, data=b"", room=1):
        self.sent = struct.pack("<IIQ", kind, 0, sector) + data
        self.writable, self.answer, self.finished = room, b"", False

    @property
    def readable(self):
        return len(self.sent)

    def read(self, length):
        data, self.sent = self.sent[:length], self.sent[length:]
        return data

    def write(self, data):
        self.answer += data

    def done(self):
        self.finished = True


def test_a_disk_that_fails_after_two_writes(example):
    errors = example("disk_errors")
    disk = errors.FailingDisk(bytes(8 * 512), after=2)
    assert disk.config == struct.pack("<Q", 8)

    def ask(*args, **kw):
        request = Request(*args, **kw)
        disk.handle([request])
        assert request.finished
        return request.answer

    assert ask(errors.WRITE, 1, b"a" * 512) == errors.OK
    assert ask(errors.WRITE, 2, b"b" * 512) == errors.OK
    assert ask(errors.WRITE, 3, b"c" * 512) == errors.ERROR
    assert disk.failed == [3]
    assert ask(errors.READ, 1, room=1025) == b"a" * 512 + b"b" * 512 + errors.OK
    assert ask(errors.READ, 3, room=513) == bytes(512) + errors.OK
    assert ask(errors.IDENTIFY, 0, room=21)[-1:] == errors.OK
    assert ask(errors.FLUSH, 0) == errors.OK
    assert ask(77, 0)[-1:] == errors.UNSUPPORTED
    # Behind its end it has nothing.
    assert ask(errors.READ, 8, room=513)[-1:] != errors.OK
