"""Builds the binary: one static executable with interpreter, native modules and frozen code.

Run by the Debian interpreter whose static library is linked (`make binary` does):
    /usr/bin/python3.11 -I packaging/binary/build.py --elftools DIR --output dist/vllmd-hypervisor
Everything made on the way is under --work, with what starts were seen to use (the profile). The
same sources, tools and profile give the same bytes.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import struct
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent), str(ROOT)]

from collect import Collector, Missing, Module, marshalled  # noqa: E402
from commit import commit  # noqa: E402
from hardening import COMPILE, LINK  # noqa: E402
from modules import BUILTIN, CORE, IN_LIBRARY, LEFT_OUT, LINKED, ROOTS  # noqa: E402
from parts import MODULE, Part, PartError, inputs, of_debian, of_python, source_of  # noqa: E402
from placing import Heap, have_valgrind, placing  # noqa: E402
from rehearsal import RANGES_MAX, RehearsalError, have_kvm, pages_written, ranges  # noqa: E402

# The profile: struct vmm_placing, and ranges of pages as JSON.
PLACING, PAGES = "snapshot.placing", "snapshot.pages"
# What a snapshot's file begins with: vmm_snapshot_take().
HEAD = struct.Struct("<10Q")
PREPARE = "_vmm_prepare"
OWN = {"vmm", "devices"}
C_FLAGS = [
    "-O2", "-g0", "-fno-strict-aliasing", "-fno-pie", "-ffunction-sections", "-fdata-sections",
    "-Wall", "-Wno-unused-function", "-DNDEBUG", "-DCYTHON_CLINE_IN_TRACEBACK=0", *COMPILE,
]  # fmt: skip
LINK_FLAGS = [
    "-static", "-no-pie", "-s", f"-Wl,-T,{HERE / 'snapshot.ld'}",
    "-Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=free", "-Wl,--gc-sections",
    "-Wl,--build-id=none", *LINK,
]  # fmt: skip
# The static library calls these, which need the C library's shared parts; no code of ours gets
# there (user names, host names, dlopen).
KNOWN_WARNINGS = "statically linked applications requires at runtime the shared libraries"


class BuildError(Exception):
    """The binary cannot be built; the text says what helps."""


def run(command: list[str], **options: object) -> str:
    """Run a tool; BuildError with what it said when it fails."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options
    )  # type: ignore[call-overload]
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stdout}")
    return str(done.stdout)


def static_library() -> Path:
    """Libpython of the running interpreter; BuildError names the package."""
    path = Path(sysconfig.get_config_var("LIBPL")) / sysconfig.get_config_var("LIBRARY")
    if not path.exists():
        version = sysconfig.get_python_version()
        raise BuildError(f"{path} is missing: apt-get install libpython{version}-dev")
    return path


def native_sources() -> dict[str, Path]:
    """C file by module name, as Cython made it for the installed package (`make build`)."""
    found = {}
    for source in sorted((ROOT / "vmm/_native").rglob("*.pyx")):
        relative = source.relative_to(ROOT).with_suffix("")
        c_file = ROOT / "build/cython" / relative.with_suffix(".c")
        if not c_file.exists() or c_file.stat().st_mtime < source.stat().st_mtime:
            raise BuildError(f"{c_file.relative_to(ROOT)} is missing or old: make build")
        found[".".join(relative.parts)] = c_file
    return found


def parts_of(library: Path, packages: Path) -> list[Part]:
    """Others' code that is to be in the binary; check_parts() looks whether it is."""
    found = {library.resolve(), Path(os.__file__).resolve()}
    for name in LINKED:
        path = Path(run([os.environ.get("CC", "gcc"), f"-print-file-name={name}"]).strip())
        if not path.is_absolute():
            raise BuildError(f"{name} is missing: packaging/debian-packages.sh binary")
        found.add(path.resolve())
    of_pip = [of_python(name, packages) for name in ("Cython", "pyelftools")]
    return sorted([*of_debian(found), *of_pip])


def check_parts(map_file: Path, library: Path, told: list[Part], work: Path) -> None:
    """BuildError when the linker took something of a package that is not told of."""
    linked = inputs(map_file.read_text())
    others = {path for path in linked if not path.is_relative_to(work)}
    strange = sorted(set(of_debian(others | {library.resolve()})) - set(told))
    if strange:
        raise BuildError(f"modules.py does not list what is linked in: {strange}")


def collect(elftools: Path, natives: set[str], work: Path, parts: list[Part]) -> list[Module]:
    """Every Python module of the binary, sorted by name."""
    places = [ROOT, Path(sysconfig.get_path("stdlib")), elftools.parent]
    finder = Collector(places, natives | set(BUILTIN) | set(CORE), LEFT_OUT, OWN)
    for name in ROOTS:
        finder.add(name, "modules.py")
    (work / "vmm").mkdir(exist_ok=True)
    texts = {"vmm/_commit.py": f"COMMIT = {commit(ROOT)!r}\n", MODULE: source_of(parts)}
    for path, text in texts.items():
        (work / path).write_text(text)
        name = path.removesuffix(".py").replace("/", ".")
        finder.modules[name] = Module(name, work / path, work)
    finder.modules[PREPARE] = Module(PREPARE, HERE / "prepare.py", HERE)
    unused = sorted(set(LEFT_OUT) - finder.skipped)
    if unused:
        raise BuildError(f"modules.py leaves out what nobody imports: {', '.join(unused)}")
    return [finder.modules[name] for name in sorted(finder.modules) if name not in IN_LIBRARY]


def write_tables(work: Path, modules: list[Module], natives: dict[str, Path]) -> list[Path]:
    """The C source of both tables, and the marshalled code as an assembler source."""
    blob = bytearray()
    rows = []
    for module in modules:
        data = marshalled(module.code())
        package = int(module.is_package)
        rows.append(f'"{module.name}", vmm_frozen + {len(blob)}, {len(data)}, {package}, NULL')
        blob += data
    (work / "frozen.bin").write_bytes(blob)
    (work / "frozen.S").write_text(
        ".section .rodata\n.global vmm_frozen\n.balign 64\nvmm_frozen:\n"
        f'.incbin "{work / "frozen.bin"}"\n.section .note.GNU-stack,"",@progbits\n'
    )
    inits = [(name, init_name(name)) for name in sorted(natives)]
    inits += [(name, f"PyInit_{name}") for name in BUILTIN]
    inits += [(name, INIT_NAMES.get(name, f"PyInit_{name}")) for name in CORE if name in INIT_CORE]
    lines = ["#include <Python.h>", "extern const unsigned char vmm_frozen[];"]
    lines += [f"extern PyObject *{init}(void);" for _, init in inits]
    lines.append("struct _inittab _PyImport_Inittab[] = {")
    lines += [f'    {{"{name}", {init}}},' for name, init in inits]
    lines += ['    {"builtins", NULL},', '    {"sys", NULL},', "    {0, 0}", "};"]
    lines.append("static const struct _frozen table[] = {")
    lines += [f"    {{{row}}}," for row in rows]
    lines += ["    {0}", "};", "const struct _frozen *vmm_frozen_modules = table;"]
    (work / "tables.c").write_text("\n".join(lines) + "\n")
    return [work / "tables.c", work / "frozen.S"]


# Modules of the core have initialisers with names of their own (config.c of CPython).
INIT_NAMES = {"marshal": "PyMarshal_Init", "_warnings": "_PyWarnings_Init"}
INIT_CORE = {"marshal", "_imp", "_ast", "_tokenize", "gc", "_warnings", "_string"}


def init_name(module: str) -> str:
    """A native module's initialiser: by its full name, since libpython has a posix of its own."""
    return "PyInit_" + module.replace(".", "__")


def compile_all(work: Path, sources: dict[Path, str]) -> list[Path]:
    """Object files of C and assembler sources; a native module's source has a module name."""
    compiler = os.environ.get("CC", "gcc")
    include = ["-I", sysconfig.get_path("include"), "-I", str(ROOT / "vmm/_native/linux")]

    def build(source: Path) -> Path:
        module = sources[source]
        target = work / f"{module or source.stem}.o"
        makers = (source, HERE / "build.py", HERE.parent / "hardening.py")
        newest = max(path.stat().st_mtime for path in makers)
        if module and target.exists() and target.stat().st_mtime > newest:
            return target
        flags = [*C_FLAGS, f"-ffile-prefix-map={ROOT}=.", *include]
        if module:
            flags.append(f"-DPyInit_{module.rpartition('.')[2]}={init_name(module)}")
        run([compiler, *flags, "-c", str(source), "-o", str(target)], cwd=ROOT)
        return target

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(build, sources))


def link(objects: list[Path], library: Path, output: Path) -> None:
    """The executable, with no snapshot yet."""
    command = [os.environ.get("CC", "gcc"), *LINK_FLAGS, "-o", str(output), *map(str, objects)]
    command += [str(library), "-luring", "-lz", "-lm", "-lpthread", f"-Wl,-Map={output}.map"]
    run(command)


class Snapshot(NamedTuple):
    """Address and bytes of one, where in it the list of ranges is, and its heap."""

    start: int
    data: bytes
    table: int
    heap: Heap


def take_snapshot(linked: Path, taken: Path, *placing: Path) -> Snapshot:
    """Let the executable take its snapshot."""
    command = [str(path.resolve()) for path in (linked, taken, *placing)]
    run(command, env={}, stdin=subprocess.DEVNULL)
    whole = taken.read_bytes()
    start, length, table, heap, *bounds = HEAD.unpack_from(whole)
    data = whole[HEAD.size : HEAD.size + length]
    areas = list(zip(bounds[::2], bounds[1::2], strict=True))
    memory = data[heap - start : heap - start + areas[-1][1]]
    return Snapshot(start, data, table - start, Heap(heap, memory, areas))


def add_snapshot(linked: Path, work: Path, output: Path, profile: Path | None) -> str:
    """Let the executable take its snapshot, and put that into the file; in place at once.

    What an earlier build has measured is taken from ``profile``; else it is measured, and kept in
    ``work``. Returns what is to be told of the pages that a start writes to.
    """
    new, taken = output.with_suffix(".new"), work / "snapshot.bin"
    known = profile or work
    if profile is None:
        measure_placing(linked, work, new)
    elif not (profile / PAGES).exists():
        raise BuildError(f"--profile {profile}: no {PAGES} there; name the --work of a build")
    placed = [path for path in [known / PLACING] if path.exists()]
    snapshot = take_snapshot(linked, taken, *placed)
    if profile is None:
        measure_pages(linked, snapshot, work, new)
    pairs = [tuple(pair) for pair in json.loads((known / PAGES).read_text())]
    write_executable(new, with_ranges(linked, snapshot, pairs))
    new.replace(output)
    count = sum(pair[1] for pair in pairs)
    if not pairs:
        return "no KVM here to find out which pages a start writes to: it will copy one by one"
    told = f"a start writes to {count} of {len(snapshot.data) // 4096} pages"
    return told if placed else f"{told}; fewer with valgrind (apt-get install valgrind)"


def measure_placing(linked: Path, work: Path, new: Path) -> None:
    """Writes the file; or none, where nothing can be measured."""
    (work / PLACING).unlink(missing_ok=True)
    if have_kvm() and have_valgrind():
        snapshot = take_snapshot(linked, work / "snapshot.bin")
        write_executable(new, with_ranges(linked, snapshot, []))
        (work / PLACING).write_bytes(placing(new, snapshot.heap))


def measure_pages(linked: Path, snapshot: Snapshot, work: Path, new: Path) -> None:
    """Writes the file of ranges; of none, where there is no KVM."""
    write_executable(new, with_ranges(linked, snapshot, []))
    pages = pages_written(new, snapshot.start, len(snapshot.data))
    (work / PAGES).write_text(json.dumps(ranges(pages)))


def with_ranges(linked: Path, snapshot: Snapshot, pairs: list[tuple[int, int]]) -> bytes:
    """The executable with the snapshot and these ranges of pages in it."""
    image = bytearray(linked.read_bytes())
    at = file_offset(image, snapshot.start)
    image[at : at + len(snapshot.data)] = snapshot.data
    at += snapshot.table
    rows = b"".join(struct.pack("<II", *pair) for pair in pairs)
    image[at : at + 8 * RANGES_MAX] = rows.ljust(8 * RANGES_MAX, b"\0")
    return bytes(image)


def write_executable(path: Path, image: bytes) -> None:
    """A new file: one that runs cannot be written to."""
    path.unlink(missing_ok=True)
    path.write_bytes(image)
    path.chmod(0o755)


def file_offset(image: bytes, address: int) -> int:
    """Where in an ELF file the byte of an address is (elf(5), program headers)."""
    (table,) = struct.unpack_from("<Q", image, 32)
    size, count = struct.unpack_from("<HH", image, 54)
    for at in range(table, table + size * count, size):
        kind, _, offset, base, _, length = struct.unpack_from("<IIQQQQ", image, at)
        if kind == 1 and base <= address < base + length:  # PT_LOAD
            return int(offset + address - base)
    raise BuildError(f"no segment of the executable has a byte at {address:#x}")


def main() -> int:
    """Build; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--elftools", type=Path, required=True, help="pyelftools' package folder")
    parser.add_argument("--work", type=Path, default=ROOT / "build/binary")
    parser.add_argument("--profile", type=Path, help="the work folder of a build to do again")
    parser.add_argument("--output", type=Path, default=ROOT / "dist/vllmd-hypervisor")
    options = parser.parse_args()
    try:
        options.work.mkdir(parents=True, exist_ok=True)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        library = static_library()
        natives = native_sources()
        parts = parts_of(library, options.elftools.parent)
        modules = collect(options.elftools, set(natives), options.work, parts)
        sources = write_tables(options.work.resolve(), modules, natives)
        own = [HERE / name for name in ("launcher.c", "snapshot.c", "heap.c")]
        plain = dict.fromkeys([*own, *sources], "")
        modules_of = {source: name for name, source in natives.items()}
        objects = compile_all(options.work, {**plain, **modules_of})
        linked = options.work / "linked"
        link(objects, library, linked)
        check_parts(linked.with_suffix(".map"), library, parts, options.work.resolve())
        (options.work / "parts.json").write_text(json.dumps(parts))
        told = add_snapshot(linked, options.work, options.output, options.profile)
    except (BuildError, Missing, PartError, RehearsalError) as error:
        print(f"build.py: {error}", file=sys.stderr)
        return 1
    size = options.output.stat().st_size
    print(f"{options.output}: {size / 1e6:.1f} MB, {len(modules)} frozen modules; {told}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
