"""Builds the drivers, and whole sets of native modules with sanitizers, in folders of their own.

A set is a folder below build/fuzz with modules as they lie in the tree; use() lets imports come
from it. `plain` has only the drivers: they work on the tree's own native modules.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import sysconfig
from contextlib import contextmanager
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build/fuzz"
DRIVERS = Path("tests/fuzz/drivers")
NATIVE = Path("vmm/_native")
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
COMMON = ["-fno-strict-aliasing", "-Wall", "-Wno-unused-function", "-Wno-unused-variable"]
SANITIZED = ["-O1", "-g1", "-fno-omit-frame-pointer", *COMMON]
# What each set is compiled with, and which modules it has.
SETS: dict[str, tuple[list[str], tuple[Path, ...]]] = {
    "plain": (["-O1", *COMMON], (DRIVERS,)),
    # Undefined behaviour ends the process as a wrong address does. Not `function`: C has none.
    "asan": (
        [*SANITIZED, "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
        (DRIVERS, NATIVE),
    ),
    "tsan": ([*SANITIZED, "-fsanitize=thread"], (DRIVERS, NATIVE)),
}
DIRECTIVES = {
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "embedsignature": False,
    "freethreading_compatible": False,
}


def sources(rooms: tuple[Path, ...]) -> list[Path]:
    """The .pyx files of these rooms, relative to the tree."""
    found = [path for room in rooms for path in (ROOT / room).rglob("*.pyx")]
    return sorted(path.relative_to(ROOT) for path in found)


def fingerprint(name: str) -> str:
    """Changes with everything that a set is made of."""
    digest = hashlib.sha256(repr((SETS[name], SUFFIX, sys.version)).encode())
    for room in (DRIVERS, NATIVE):
        for path in sorted((ROOT / room).rglob("*.*")):
            if path.suffix in (".pyx", ".pxd", ".h"):
                digest.update(str(path).encode() + path.read_bytes())
    return digest.hexdigest()


def build(name: str) -> Path:
    """The folder of a set, built anew where its sources have changed."""
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    stamp = folder / "built"
    with _locked(folder / "lock"):
        wanted = fingerprint(name)
        if not stamp.exists() or stamp.read_text() != wanted:
            print(f"building the {name} modules in {folder}", file=sys.stderr)
            # In a process of its own: Cython keeps the first set's arguments for the next one.
            subprocess.run([sys.executable, "-m", "tests.fuzz.build", name], check=True, cwd=ROOT)
            stamp.write_text(wanted)
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two test processes want the same set at once."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def compile_set(name: str) -> None:
    """All modules of a set, once in a process."""
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension

    folder = FOLDER / name
    arguments, rooms = SETS[name]
    os.chdir(ROOT)
    made = cythonize(
        [_extension(Extension, path, arguments) for path in sources(rooms)],
        build_dir=str(folder / "cython"),
        include_path=[str(ROOT)],
        language_level=3,
        compiler_directives=DIRECTIVES,
        quiet=True,
    )
    command = Distribution({"ext_modules": made}).get_command_obj("build_ext")
    command.build_lib, command.build_temp = str(folder), str(folder / "objects")
    command.parallel = os.cpu_count()
    command.ensure_finalized()
    command.run()


def _extension(kind: Any, path: Path, arguments: list[str]) -> Any:
    sanitizers = [argument for argument in arguments if argument.startswith("-fsanitize=")]
    return kind(
        ".".join(path.with_suffix("").parts),
        [str(path)],
        include_dirs=[str(NATIVE / "linux"), str(DRIVERS)],
        libraries=["uring"] if path.stem == "uring" else [],
        extra_compile_args=arguments,
        extra_link_args=sanitizers,
    )


class Finder:
    """Modules that a set has come from it, all others from where they always do."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The set's module of that name, or None."""
        file = self._folder.joinpath(*name.split(".")).with_suffix(SUFFIX)
        if not file.exists():
            return None
        loader = ExtensionFileLoader(name, str(file))
        return spec_from_file_location(name, str(file), loader=loader)


def use(name: str) -> None:
    """From now on imports come from this set, where it has the module. It is built before."""
    sys.meta_path.insert(0, Finder(FOLDER / name))


if __name__ == "__main__":
    compile_set(sys.argv[1])
