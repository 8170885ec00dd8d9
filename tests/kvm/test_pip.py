"""What pip installs: sdist and wheel, in a fresh environment, beside a package `devices`."""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import elftools
import pytest

from tests.support import command
from tests.support.binary import BINARY
from tests.support.command import Command
from tests.support.packaging_tools import load, run

ROOT = Path(__file__).resolve().parents[2]
# The native modules are translated and compiled once, without optimisation.
BUILD_SECONDS = 900
pytestmark = pytest.mark.timeout(BUILD_SECONDS)
IMPORT_ALL = """
import importlib, pkgutil, vmm
found = [module.name for module in pkgutil.walk_packages(vmm.__path__, "vmm.")]
for name in found:
    if name != "vmm.__main__":
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            # This environment has nothing of the index; traces are read by numpy.
            assert (error.name, name.split(".")[1]) == ("numpy", "debug"), (name, error)
print(len(found), vmm.__file__)
"""
WHOSE = "import devices, devices.pci; print(devices.WHOSE, devices.pci.WHOSE)"


def copy_of_the_tree(folder: Path) -> Path:
    """What a checkout has: a build in the tree would leave its files there."""
    left_out = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "*.so", "__pycache__")
    return Path(shutil.copytree(ROOT, folder, ignore=left_out))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    tree = copy_of_the_tree(folder / "tree")
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    run(sys.executable, "-c", build, cwd=tree)
    (found,) = folder.glob("*.tar.gz")
    return found


class Tree:
    """What an sdist unpacks to, in which pip builds wheels one after the other."""

    def __init__(self, sdist: Path, folder: Path) -> None:
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        (self.folder,) = [path for path in folder.iterdir() if path.is_dir()]
        self._quick = folder / "cc"
        self._quick.write_text('#!/bin/sh\nexec gcc "$@" -O0 -g0\n')
        self._quick.chmod(0o755)

    def wheel(self, name: str, **variables: object) -> Path:
        """Made by pip from nothing but the sdist, in a folder of that name."""
        folder = self.folder.parent / name
        env = {**os.environ, "CC": str(self._quick)}
        env.update({key: str(value) for key, value in variables.items()})
        run(
            sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps",
            "--no-index", "--wheel-dir", folder, self.folder, cwd=self.folder.parent, env=env,
        )  # fmt: skip
        (found,) = folder.glob("*.whl")
        return found


@pytest.fixture(scope="module")
def tree(sdist, tmp_path_factory) -> Tree:
    return Tree(sdist, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def with_executable(tree) -> Path | None:
    return tree.wheel("one", VLLMD_WHEEL_EXECUTABLE=BINARY) if BINARY.exists() else None


@pytest.fixture(scope="module")
def wheel(tree, with_executable) -> Path:
    """Built behind the other one, of which nothing must be left."""
    return tree.wheel("other", VLLMD_WHEEL_EXECUTABLE="none")


class Environment:
    """A virtual environment with nothing in it but what a test installs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        run(sys.executable, "-m", "venv", "--without-pip", folder)
        self.python = folder / "bin/python"
        (self.packages,) = folder.glob("lib/python*/site-packages")
        # pyelftools, which pip would fetch.
        (self.packages / "elftools").symlink_to(elftools.__path__[0])

    def pip(self, *words: object) -> None:
        run(sys.executable, "-m", "pip", "--quiet", "--python", self.python, *words)

    def install(self, wheel: Path) -> None:
        self.pip("install", "--no-deps", "--no-index", wheel)

    def run(self, code: str) -> str:
        """Output of a program, started where no package of the tree is in reach."""
        return run(self.python, "-c", code, cwd=self.folder).strip()


@pytest.fixture
def environment(tmp_path) -> Iterator[Environment]:
    return Environment(tmp_path / "environment")


@pytest.fixture
def theirs(tmp_path) -> Path:
    """Somebody else's wheel, with a package of that name."""
    path = tmp_path / "theirs-1-py3-none-any.whl"
    info = "theirs-1.dist-info"
    files = {
        "devices/__init__.py": "WHOSE = 'theirs'\n",
        "devices/pci.py": "WHOSE = 'theirs, too'\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: theirs\nVersion: 1\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }  # fmt: skip
    record = "".join(f"{name},,\n" for name in files) + f"{info}/RECORD,,\n"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(name, text)
    return path


def a_guest_runs(environment: Environment, folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(command, "COMMAND", str(environment.folder / "bin/vllmd-hypervisor"))
    folder.mkdir()
    code, told = Command(folder).run("start")
    assert (code, "hello" in told) == (0, True), told


def test_the_sdist_has_all_that_a_build_needs_and_no_more(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tree = {
        str(path.relative_to(ROOT))
        for top in ("vmm", "devices", "packaging")
        for path in (ROOT / top).rglob("*")
        if path.is_file() and path.suffix not in (".so", ".pyc", ".swp", ".bundle")
    }
    assert tree - names == set()
    assert {"LICENSE", "README.md", "Makefile", "pyproject.toml", "vmm/_commit.py"} <= names
    assert not [name for name in names if name.startswith((".", "tests", "benchmarks", "build"))]
    assert not [name for name in names if name.endswith((".so", ".c")) and "binary" not in name]


def test_the_wheel_has_every_module_and_the_licence(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (top,) = [name for name in names if name.endswith("/top_level.txt")]
        assert archive.read(top) == b"vmm\n"
    python = {str(path.relative_to(ROOT)) for path in (ROOT / "vmm").rglob("*.py")}
    python |= {f"vmm/{path.relative_to(ROOT)}" for path in (ROOT / "devices").rglob("*.py")}
    assert python <= set(names)
    natives = {path.stem for path in (ROOT / "vmm/_native").rglob("*.pyx")}
    assert {Path(name).name.partition(".")[0] for name in names if ".so" in name} == natives
    assert {name.split("/")[0] for name in names} == {
        "vmm", *[name.split("/")[0] for name in names if ".dist-info/" in name or ".data/" in name]
    }  # fmt: skip
    assert any(name.endswith("/LICENSE") for name in names)
    inside, beside = load("sbom").wheel_parts(wheel)
    assert [part.name for part in inside] == ["Cython"]
    assert sorted(part.name for part in beside) == ["numpy", "pyelftools"]
    assert not [name for name in names if name.endswith((".pyx", ".pxd", ".c", ".h"))]


def test_a_fresh_environment(wheel, environment, tmp_path, monkeypatch):
    environment.install(wheel)
    count, path = environment.run(IMPORT_ALL).split()
    assert path == str(environment.packages / "vmm/__init__.py")
    assert int(count) > 80
    assert (environment.folder / "bin/vllmd-hypervisor").read_bytes().startswith(b"#!")
    benchmark = environment.folder / "bin/vllmd-hypervisor-bench"
    assert "[[contender]]" in run(benchmark, "example", cwd=tmp_path)
    a_guest_runs(environment, tmp_path / "guest", monkeypatch)


def test_a_wheel_with_the_executable(with_executable, environment, tmp_path, monkeypatch):
    if with_executable is None:
        pytest.skip(f"{BINARY} is not built: make binary")
    environment.install(with_executable)
    installed = environment.folder / "bin/vllmd-hypervisor"
    assert installed.read_bytes() == BINARY.read_bytes()
    a_guest_runs(environment, tmp_path / "guest", monkeypatch)
    where = environment.run("import vmm.machine; print(vmm.machine.__file__)")
    assert where.startswith(str(environment.packages))
    environment.pip("uninstall", "--yes", "vllmd-hypervisor")
    assert not installed.exists()


def test_a_plain_build_makes_the_executable(tree, environment, tmp_path, monkeypatch):
    """Its own, not the checkout's; `python -m vmm` is the command in Python."""
    if not load("executable").INTERPRETER.exists():
        pytest.skip("no Debian 12 Python: packaging/debian-packages.sh binary")
    environment.install(tree.wheel("plain"))
    installed = environment.folder / "bin/vllmd-hypervisor"
    assert installed.read_bytes().startswith(b"\x7fELF")
    a_guest_runs(environment, tmp_path / "guest", monkeypatch)
    in_python = run(environment.python, "-m", "vmm", "--version", cwd=tmp_path)
    commits = [told.partition(",")[0] for told in (in_python, run(installed, "--version"))]
    assert commits[0] == commits[1]


def test_beside_somebody_else_s_devices(wheel, theirs, environment, tmp_path, monkeypatch):
    """In either order, and neither's removal touches the other."""
    environment.install(theirs)
    environment.install(wheel)
    assert environment.run(WHOSE) == "theirs theirs, too"
    a_guest_runs(environment, tmp_path / "1", monkeypatch)
    environment.pip("uninstall", "--yes", "theirs")
    a_guest_runs(environment, tmp_path / "2", monkeypatch)
    environment.install(theirs)
    a_guest_runs(environment, tmp_path / "3", monkeypatch)
    environment.pip("uninstall", "--yes", "vllmd-hypervisor")
    assert environment.run(WHOSE) == "theirs theirs, too"
    assert not (environment.packages / "vmm").exists()
