"""A snapshot as a file: a page that says what it is, a text of plain values, RAM, disks.

RAM begins at a page and is sparse, so that loading maps it and reads nothing. The text is checked
against its hash and then value by value; RAM is what it is. The file must not be changed while
guests live over it (it may be removed, or replaced by another of its name).
"""

from __future__ import annotations

import hashlib
import os
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vmm._native.memory.frozenram import FrozenRam
from vmm._native.memory.ramimage import RamImage
from vmm.debug.keywords import config_of_keywords
from vmm.debug.plain import from_text, to_text
from vmm.debug.saveddisks import write_layers
from vmm.errors import HostError, StateError
from vmm.layout import PAGE_SIZE, ram_regions
from vmm.light.freshfile import fresh_file
from vmm.light.regular import open_regular
from vmm.light.state import Unfit, read_state, unsigned

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm._native.disk.layer import Layer
    from vmm.settings.config import Config

MAGIC = b"vllmd-snapshot\r\n"
VERSION = 1
# Magic, version, bytes of the text, where RAM begins, bytes of RAM, SHA-256 of the text.
HEADER = struct.Struct("<16sI4xQQQ32s")
TEXT_MAX = 256 << 20
RAM_MAX = 1 << 46
KEYS = ("config", "vcpus", "vm", "devices", "disks")


def write(
    path: str | os.PathLike[str], values: dict[str, Any], ram: RamImage, layers: Sequence[Layer]
) -> None:
    """Write it beside ``path``, then give it its name. HostError, and nothing is left."""
    path = os.fspath(path)
    try:
        with fresh_file(path) as fd:
            _fill(fd, to_text(values), ram, layers)
    except OSError as error:
        raise HostError(
            f"cannot save the snapshot as {path}: {os.strerror(error.errno or 0)}",
            "give it a folder that is there, with room for the RAM that the guest uses",
        ) from error


def _fill(fd: int, text: bytes, ram: RamImage, layers: Sequence[Layer]) -> None:
    ram_at = -(-(PAGE_SIZE + len(text)) // PAGE_SIZE) * PAGE_SIZE
    os.ftruncate(fd, ram_at + ram.size)
    _write_all(fd, text, PAGE_SIZE)
    ram.write_to(fd, ram_at)
    write_layers(fd, ram_at + ram.size, layers)
    digest = hashlib.sha256(text).digest()
    _write_all(fd, HEADER.pack(MAGIC, VERSION, len(text), ram_at, ram.size, digest), 0)
    os.fsync(fd)


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view = view[done:]
        offset += done


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[tuple[dict[str, Any], RamImage, int]]:
    """The values, RAM and descriptor of a file; what is wrong with them is a StateError."""
    path = os.fspath(path)
    try:
        fd = open_regular(path)
    except OSError as error:
        raise HostError(
            f"cannot open the snapshot {path}: {error.strerror}", "check the path"
        ) from error
    try:
        values, ram_at, size = _read(fd)
        yield values, RamImage(FrozenRam(os.dup(fd), ram_regions(size), ram_at)), fd
    except StateError as error:
        raise StateError(f"{path}: {error.problem}", error.remedy) from error
    except (ValueError, TypeError, OSError) as error:
        raise _damaged(f"{path}: {error}") from error
    finally:
        os.close(fd)


def _damaged(problem: str) -> StateError:
    return StateError(problem, "save the snapshot anew")


def _read(fd: int) -> tuple[dict[str, Any], int, int]:
    """(values of the text, where RAM begins, its size), as far as the file itself can be held."""
    head = os.pread(fd, HEADER.size, 0)
    if len(head) < HEADER.size or head[: len(MAGIC)] != MAGIC:
        raise _damaged("this is no snapshot of ours")
    _, version, length, ram_at, size, digest = HEADER.unpack(head)
    if version != VERSION:
        raise StateError(f"version {version} of the form, {VERSION} is known", "save it anew")
    if length > TEXT_MAX or ram_at % PAGE_SIZE or ram_at < PAGE_SIZE + length or size > RAM_MAX:
        raise _damaged(f"the header has a text of {length} bytes, RAM of {size} at {ram_at:#x}")
    if os.fstat(fd).st_size < ram_at + size:
        raise _damaged(f"{os.fstat(fd).st_size} bytes long, {ram_at + size} are needed")
    text = os.pread(fd, length, PAGE_SIZE)
    if hashlib.sha256(text).digest() != digest:
        raise _damaged("the text is damaged: its hash is another")
    values = from_text(text)
    if type(values) is not dict or values.keys() != set(KEYS):
        raise _damaged(f"the text has not the parts {', '.join(KEYS)}")
    return values, ram_at, size


def a_list(key: str, found: Any, count: int) -> list[Any]:
    """A list of just so many."""
    if type(found) is not list or len(found) != count:
        raise _damaged(f"{key}: a list of {count} is needed")
    return found


def config_to(config: Config) -> dict[str, object]:
    """The plain values of a guest's settings."""
    return {
        "version": 1,
        "kernel": config.kernel_path,
        "cpu_count": config.cpu_count,
        "memory": config.memory.size,
    }


def config_from(found: object, size: int) -> Config:
    """The settings of a guest with so much RAM, by the rules of all settings."""
    known = read_state(
        "config", found, {"kernel": _text, "cpu_count": unsigned(16), "memory": unsigned(46)}
    )
    if known["memory"] != size:
        raise _damaged(f"config: memory is {known['memory']}, the file has {size} bytes of RAM")
    config, _ = config_of_keywords(
        {"kernel": known["kernel"], "cpu_count": known["cpu_count"], "memory": size}
    )
    return config


def _text(value: object) -> str:
    if type(value) is not str or not 0 < len(value) <= PAGE_SIZE:
        raise Unfit(value, "a path is needed")
    return value
