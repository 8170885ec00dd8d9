"""Build only: finds the native modules, translates them late, keeps generated C out of the tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel
from setuptools.command.sdist import sdist

# isort: split
# The one that setuptools brings, behind it.
from distutils.command.build_scripts import build_scripts

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "packaging"))

import bundle  # noqa: E402
import commit  # noqa: E402
import executable  # noqa: E402
import hardening  # noqa: E402
import inner  # noqa: E402
import parts  # noqa: E402

NATIVE = Path("vmm/_native")
COMMAND = Path("packaging/bin/vllmd-hypervisor")
# Modules that need liburing; without its header the build says so and leaves them out.
NEED_LIBURING = {"uring"}
COMPILE_ARGS = ["-O2", "-g1", "-fno-strict-aliasing", "-Wall", "-Wno-unused-function"]
COMPILE_ARGS += hardening.COMPILE


def have_liburing() -> bool:
    """True when liburing's header is found by the C compiler in use."""
    compiler = os.environ.get("CC", "gcc").split()
    if shutil.which(compiler[0]) is None:
        return False
    probe = subprocess.run(
        [*compiler, "-fsyntax-only", "-x", "c", "-"],
        input=b"#include <liburing.h>\n",
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return probe.returncode == 0


def extensions() -> list[Extension]:
    """One extension for each .pyx below vmm/_native."""
    uring = have_liburing()
    found = []
    os.chdir(ROOT)
    for source in sorted(NATIVE.rglob("*.pyx")):
        if source.stem in NEED_LIBURING and not uring:
            print(
                f"WARNING: liburing.h not found: building without {source},"
                " the io_uring disk engine. Remedy: apt-get install liburing-dev, and build again.",
                file=sys.stderr,
            )
            continue
        name = ".".join(source.with_suffix("").parts)
        libraries = ["uring"] if source.stem in NEED_LIBURING else []
        found.append(
            Extension(
                name,
                [str(source)],
                include_dirs=[str(NATIVE / "linux")],
                libraries=libraries,
                extra_compile_args=COMPILE_ARGS,
                extra_link_args=hardening.LINK,
            )
        )
    return found


class BuildExt(build_ext):
    """build_ext that runs Cython only when something is really built."""

    user_options = [*build_ext.user_options, ("only=", None, "build just this module")]

    def initialize_options(self) -> None:
        """Set the options' defaults."""
        super().initialize_options()
        self.only: str | None = None

    def finalize_options(self) -> None:
        """Translate .pyx to C under build/, then let setuptools go on."""
        from Cython.Build import cythonize

        self.parallel = self.parallel or os.cpu_count()
        chosen = [e for e in self.distribution.ext_modules if self.only in (None, e.name)]
        self.distribution.ext_modules = cythonize(
            chosen,
            build_dir="build/cython",
            nthreads=self.parallel if len(chosen) > 1 else 0,
            language_level=3,
            compiler_directives={
                "boundscheck": False,
                "wraparound": False,
                "cdivision": True,
                "embedsignature": False,
                "freethreading_compatible": False,
            },
        )
        super().finalize_options()


def generator() -> parts.Part:
    """Cython, parts of which are in each native module."""
    return parts.python_part(distribution("Cython"))


def is_native_of_ours(path: Path) -> bool:
    """A native module, below a build's folder, whose source is still there."""
    source = ROOT / path.parent / f"{path.name.partition('.')[0]}.pyx"
    return path.suffix == ".so" and source.exists()


class BuildPy(build_py):
    """build_py that moves `devices`, writes down the commit, and bundles what `start` imports.

    An editable build does only the last of these.
    """

    def run(self) -> None:
        """Copy the modules; none of an earlier build stays among the copies."""
        if self.editable_mode:
            super().run()
            bundle.write(ROOT, editable=True)
            return
        target = Path(self.build_lib)
        for old in target.rglob("*"):
            if old.is_file() and not is_native_of_ours(old.relative_to(target)):
                old.unlink()
        super().run()
        commit.write(ROOT, target)
        (target / parts.MODULE).write_text(parts.source_of([generator()]))
        inner.rewrite_tree(target)
        bundle.write(target, editable=False)


class BuildScripts(build_scripts):
    """build_scripts that takes the executable for the command where there is one."""

    def run(self) -> None:
        """Copy; nothing that an earlier build has left is up to date."""
        self.force = True
        editable = "editable_wheel" in self.distribution.commands
        found = None if editable else executable.wanted(ROOT)
        if found is None:
            super().run()
            return
        self.mkpath(self.build_dir)
        self.copy_file(str(found), str(Path(self.build_dir, COMMAND.name)))


class EditableWheel(editable_wheel):
    """editable_wheel of the tree as it is, with `devices` at the top."""

    def finalize_options(self) -> None:
        """Let setuptools look at the tree."""
        self.distribution.packages = TREE
        # An editable install is a folder's name in a .pth file then. Without, it is a finder of
        # setuptools' that imports `re` and pathlib, 18 ms at each start of that Python.
        self.distribution.package_dir = {"": "."}
        super().finalize_options()


class Sdist(sdist):
    """sdist that knows its commit, which no repository tells where it is unpacked."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Copy the files, then add vmm/_commit.py."""
        super().make_release_tree(base_dir, files)
        commit.write(ROOT, Path(base_dir))


TREE = find_packages(include=["vmm", "vmm.*", inner.OUTER, f"{inner.OUTER}.*"])

setup(
    ext_modules=extensions(),
    cmdclass={
        "build_ext": BuildExt,
        "build_py": BuildPy,
        "build_scripts": BuildScripts,
        "editable_wheel": EditableWheel,
        "sdist": Sdist,
    },
    scripts=[str(COMMAND)],
    packages=[inner.inner(package) for package in TREE],
    package_dir={inner.INNER: inner.OUTER},
    package_data={"": ["*.pyi", "py.typed"], "vmm.bench": ["example.toml"]},
    include_package_data=False,
)
