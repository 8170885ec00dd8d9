"""The bundle of a start's modules: used where it fits, and imports look as they do without it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.bundled import (
    ROOT,
    copy_checkout,
    not_bundled,
    run,
    start_verbosely,
    write_bundle,
)
from tests.support.elf_builder import build_elf
from vmm.light import bundle

USE = "from vmm.light import bundle; bundle.use()\n"
START = (
    "import vmm.boot.elf, vmm.host.preflight, vmm.run.lifecycle, vmm.run.notify, vmm.log.sinks\n"
)
SOURCE_OF = "import vmm.errors; print(type(vmm.errors.__loader__).__name__)"
MINUTES = 10**9 * 60
# All that a module shows of where it comes from, a traceback through it, and a pickle.
FACTS = """
import inspect, json, pickle, traceback, vmm.machine
def show(name, module):
    spec, loader = module.__spec__, module.__loader__
    return [
        module.__file__, getattr(module, "__path__", None), module.__package__, module.__doc__,
        getattr(module, "__cached__", None), spec.name, spec.origin, spec.cached, spec.parent,
        spec.has_location, spec.submodule_search_locations, spec.loader is loader,
        loader.is_package(name), loader.get_filename(name), loader.get_source(name),
        [f.__code__.co_filename for _, f in inspect.getmembers(module, inspect.isfunction)],
        None if module.__file__.endswith(".so") else inspect.getsource(module),
    ]
ours = {n: m for n, m in sys.modules.items() if n.split(".")[0] in ("vmm", "devices")}
facts = {name: show(name, module) for name, module in ours.items()}
from vmm.settings.parse import Endpoint, parse_size
try:
    parse_size("twelve")
except Exception:
    facts["traceback"] = traceback.format_exc()
facts["getsource"] = inspect.getsource(vmm.machine.Machine)
facts["pickle"] = repr(pickle.loads(pickle.dumps(Endpoint("file", "/log"))))
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    return copy_checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture
def tree(copy, tmp_path):
    """A copy that a test may spoil: only Python modules, mtimes kept."""
    target = tmp_path / "tree"
    shutil.copytree(copy, target, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return target


def test_a_start_searches_no_folder_for_modules_of_ours(copy):
    code = f"""{USE}{START}
ours = {{n: m for n, m in sys.modules.items() if n.split(".")[0] in ("vmm", "devices")}}
print([n for n, m in ours.items() if type(m.__loader__).__name__ == "SourceFileLoader"])
print(sum(type(m.__loader__).__name__ == "Loader" for m in ours.values()) > 60)
print([p for p in sys.path_importer_cache if p.startswith({str(copy)!r})])
"""
    searched = [str(copy), str(copy / "vmm"), str(copy / "vmm/light")]
    assert run(copy, code).splitlines() == [
        "['vmm', 'vmm.light', 'vmm.light.bundle']",
        "True",
        str(searched),
    ]


def test_modules_look_as_they_do_without_it(copy):
    # Tracebacks, source lines, pickles, __file__, __path__, __spec__.
    with_it = json.loads(run(copy, USE + FACTS))
    without = json.loads(run(copy, "from vmm.light import bundle\n" + FACTS))
    assert len(with_it) > 60
    assert "    raise " in with_it["traceback"]
    assert with_it == without


def test_a_reloaded_module_is_read_from_its_source(tree):
    code = f"{USE}import vmm.errors\nfirst = type(vmm.errors.__loader__).__name__\n"
    code += f"import importlib; importlib.reload(vmm.errors); print(first); {SOURCE_OF}"
    assert run(tree, code).split() == ["Loader", "SourceFileLoader"]


@pytest.mark.parametrize("change", ["newer", "older", "longer", "gone"])
def test_an_outdated_entry_is_not_used(tree, change):
    source = tree / "vmm/errors.py"
    facts = source.stat()
    text = source.read_text()
    mtime = facts.st_mtime_ns
    if change == "gone":
        source.rename(source.with_suffix(".keep"))
        (tree / "vmm/errors").mkdir()
        source = tree / "vmm/errors/__init__.py"
    elif change == "longer":
        text += "\n"
    else:
        mtime += 1 if change == "newer" else -1
    source.write_text(text)
    os.utime(source, ns=(mtime, mtime))
    assert run(tree, USE + SOURCE_OF) == "SourceFileLoader"
    # The others' are.
    assert run(tree, f"{USE}import vmm.layout as m; print(type(m.__loader__).__name__)") == "Loader"


def spoil(path: Path, how: str) -> None:
    data = path.read_bytes()
    middle = len(data) // 2
    if how == "missing":
        path.unlink()
    elif how == "a folder":
        path.unlink()
        path.mkdir()
    elif how == "others may write it":
        path.chmod(0o666)
    else:
        path.write_bytes(
            {
                "empty": b"",
                "cut in its head": data[:5],
                "cut": data[:middle],
                "one bit changed": data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :],
                "longer": data + b"\0",
                "zeroes": bytes(len(data)),
                "text": b"not a bundle\n",
            }[how]
        )


@pytest.mark.parametrize(
    "how",
    ["missing", "a folder", "others may write it", "empty", "cut",
     "cut in its head", "one bit changed", "longer", "zeroes", "text"],
)  # fmt: skip
def test_a_spoilt_bundle_is_ignored_without_a_word(tree, how):
    spoil(tree / "vmm/light" / bundle.NAME, how)
    assert run(tree, USE + SOURCE_OF) == "SourceFileLoader"


def test_somebody_elses_bundle_is_ignored(tmp_path):
    path = tmp_path / bundle.NAME
    path.write_bytes(bundle.checksum(b"data") + b"data")
    own = path.stat().st_uid
    assert bundle.read(str(path), own)[0] == b"data"
    if own:
        with pytest.raises(ValueError, match="bundle"):
            bundle.read(str(path), own + 1)
        return
    assert bundle.read(str(path), 1000)[0] == b"data", "root's may be used by all"
    os.chown(path, 1001, -1)
    for owner in (0, 1000):
        with pytest.raises(ValueError, match="bundle"):
            bundle.read(str(path), owner)


def test_the_checksum_is_of_this_kind_of_code_and_format(monkeypatch):
    mine = bundle.checksum(b"data")
    with monkeypatch.context() as patch:
        patch.setattr(bundle, "MAGIC_NUMBER", b"\xa8\r\r\n")
        assert bundle.checksum(b"data") != mine
    monkeypatch.setattr(bundle, "FORMAT", bundle.FORMAT + 1)
    assert bundle.checksum(b"data") != mine
    assert sys.implementation.cache_tag in bundle.NAME


@pytest.mark.parametrize("option", ["-O", "-OO"])
def test_code_with_assertions_is_not_used_where_none_are_wanted(tree, option):
    assert run(tree, USE + SOURCE_OF, option) == "SourceFileLoader"


def test_a_wheels_bundle_follows_its_files(tree):
    write_bundle(tree, editable=False)
    moved = tree.with_name("site-packages")
    tree.rename(moved)
    for path in moved.rglob("*.py"):
        os.utime(path)
    code = f"{USE}import vmm.errors\nprint(vmm.errors.VmmError.__init__.__code__.co_filename)\n"
    loader, file = run(moved, f"{code}{SOURCE_OF}").split()[::-1]
    assert (loader, file) == ("Loader", str(moved / "vmm/errors.py"))
    edited = (moved / "vmm/light" / bundle.NAME).stat().st_mtime_ns + 2 * MINUTES
    os.utime(moved / "vmm/errors.py", ns=(edited, edited))
    assert run(moved, USE + SOURCE_OF) == "SourceFileLoader"


def test_a_wheel_gets_one(tmp_path):
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", "-d", str(tmp_path)], cwd=ROOT, check=True,
        capture_output=True,
    )  # fmt: skip
    assert run(tmp_path, USE + SOURCE_OF) == "Loader"


def test_the_same_sources_make_the_same_bundle(tree):
    first = write_bundle(tree, editable=False).read_bytes()
    assert write_bundle(tree, editable=False).read_bytes() == first


def test_the_garbage_collector_is_left_on(tree):
    assert run(tree, f"{USE}import gc; print(gc.isenabled())") == "True"


def test_the_console_script_uses_it(copy, tmp_path):
    """A start, as far as it comes without /dev/kvm: the kernel here is none."""
    (tmp_path / "kernel").write_bytes(build_elf(b"\xf4")[:100])
    for image in ("system.img", "config.img"):
        (tmp_path / image).write_bytes(bytes(1 << 20))
    files = {"KERNEL": "kernel", "SYSTEM_IMAGE": "system.img", "CONFIG_IMAGE": "config.img"}
    env = {f"VLLMD_HYPERVISOR_{name}_FILEPATH": str(tmp_path / f) for name, f in files.items()}
    env |= {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    code, imported = start_verbosely(copy, env)
    assert code in (2, 38)
    assert any(row.startswith("'vmm.run.lifecycle' <vmm.light.bundle.Loader") for row in imported)
    assert not_bundled(imported) == []
