"""Imports from one file: the modules of a start, which packaging/bundle.py wrote beside this one.

A hundred modules are a hundred searches and small reads, a fifth of the time until a guest runs.
What does not fit is not used, without a word: then its modules are imported as ever.
"""

from __future__ import annotations

import gc
import posix
import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import MAGIC_NUMBER, ExtensionFileLoader, SourceFileLoader
from _imp import _fix_co_filename, source_hash  # type: ignore[attr-defined]
from marshal import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import CodeType, ModuleType

    # Of a module: its path below the root, size and mtime of the source, and the code.
    # A native module has neither; a wheel does not know when it will be unpacked: 0.
    Entry = tuple[str, int, int, CodeType | None]

FORMAT = 1  # raised with each change of Entry: an earlier build's bundle may still lie there
TAG = sys.implementation.cache_tag
NAME = f"start.{TAG}.bundle"
HASH_SIZE = 8
# An installer writes the sources of a wheel within this time; what is newer has been edited.
UNPACKING_NS = 60 * 10**9
OTHERS_WRITE = 0o002


def checksum(data: bytes) -> bytes:
    """What a bundle begins with: of its bytes, its format, and this interpreter's kind of code."""
    return source_hash(FORMAT << 32 | int.from_bytes(MAGIC_NUMBER, "little"), data)


def read(path: str, owner: int) -> tuple[bytes, int]:
    """(the entries, mtime of the file); OSError or ValueError where it is not to be trusted."""
    fd = posix.open(path, posix.O_RDONLY | posix.O_NONBLOCK)
    try:
        facts = posix.fstat(fd)
        if facts.st_uid not in (0, owner) or facts.st_mode & OTHERS_WRITE:
            raise ValueError(path)
        head, data = posix.read(fd, HASH_SIZE), posix.read(fd, facts.st_size)
    finally:
        posix.close(fd)
    if head != checksum(data):
        raise ValueError(path)
    return data, facts.st_mtime_ns


def use() -> None:
    """Let imports come from the bundle, where there is one that fits."""
    if sys.flags.optimize:
        return  # the code has its assertions and docstrings
    folder = __file__.rpartition("/")[0]
    try:
        data, made = read(f"{folder}/{NAME}", posix.stat(__file__).st_uid)
    except (OSError, ValueError):
        return
    root = folder.rpartition("/vmm/")[0]
    gc.disable()  # a collection would walk all that is made here, several times
    sys.meta_path.insert(0, Finder(root, loads(data), made + UNPACKING_NS))
    gc.freeze()
    gc.enable()


class Finder:
    """On sys.meta_path: finds each module once; what is reloaded is looked for as ever."""

    def __init__(self, root: str, entries: dict[str, Entry], unpacked: int) -> None:
        self.root = root
        self.entries = entries
        self.unpacked = unpacked

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's spec as any finder would make it, or None."""
        entry = self.entries.pop(name, None)
        if entry is None:
            return None
        relative, size, mtime, code = entry
        file = f"{self.root}/{relative}"
        try:
            facts = posix.stat(file)
        except OSError:
            return None
        if code is None:
            return located(ModuleSpec(name, ExtensionFileLoader(name, file), origin=file))
        if facts.st_size != size or not mtime <= facts.st_mtime_ns <= (mtime or self.unpacked):
            return None
        spec = located(ModuleSpec(name, Loader(name, file, code), origin=file))
        folder, _, base = file.rpartition("/")
        if sys.pycache_prefix is None:
            # What the property would find out by itself, in more time than the rest takes.
            spec.cached = f"{folder}/__pycache__/{base[:-3]}.{TAG}.pyc"
        if base == "__init__.py":
            spec.submodule_search_locations = [folder]
        return spec


def located(spec: ModuleSpec) -> ModuleSpec:
    """The spec of a module that gets a ``__file__``."""
    spec.has_location = True
    return spec


class Loader(SourceFileLoader):
    """A source file's loader that has the code already."""

    def __init__(self, fullname: str, path: str, code: CodeType) -> None:
        super().__init__(fullname, path)
        self._code: CodeType | None = code

    def get_code(self, fullname: str) -> CodeType | None:
        """The code, under the name of the file where it lies now."""
        code, self._code = self._code, None
        if code is None:
            return super().get_code(fullname)
        _fix_co_filename(code, self.path)
        return code
