"""docs/status-json.md names every key that the code puts into a status."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.support.status_document import ROOT, documented

# Functions whose dictionaries go into `status`, and the file each is in.
SOURCES = [
    ("vmm/run/status.py", "run_facts"),
    ("vmm/run/status.py", "_last_exit"),
    ("vmm/run/attach/door.py", "status"),
    ("vmm/command/status.py", "_alive_status"),
    ("vmm/command/status.py", "_dead_status"),
    ("vmm/debug/gdb/service.py", "status"),
    ("vmm/confine/lockdown.py", "status"),
    ("vmm/machine.py", "status"),
    ("vmm/settings/placement.py", "status"),
    ("vmm/memory.py", "memory_status"),
    ("vmm/vcpu.py", "status"),
    ("vmm/host/disk.py", "status"),
    ("vmm/host/console.py", "status"),
    ("devices/pci/function.py", "status"),
    ("devices/virtio/pci.py", "status"),
    ("devices/virtio/block.py", "status"),
    ("devices/virtio/console.py", "status"),
    ("devices/vfio/passthrough.py", "status"),
    ("devices/vfio/interrupts.py", "status"),
]
# What is asked of an instance, not told by it.
REQUESTS = {"command"}


def keys(function: ast.AST) -> Iterator[str]:
    """Text keys of dictionaries that it writes down, and of those it assigns to."""
    for node in ast.walk(function):
        if isinstance(node, ast.Dict):
            words = [key for key in node.keys if isinstance(key, ast.Constant)]
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            words = [node.slice] if isinstance(node.slice, ast.Constant) else []
        else:
            continue
        yield from [word.value for word in words if isinstance(word.value, str)]


@pytest.mark.parametrize(("file", "function"), SOURCES)
def test_every_key_is_documented(file, function):
    tree = ast.parse((ROOT / file).read_text())
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == function
    ]
    assert found, f"{file} has no {function} any more"
    known = {name.removesuffix("[]") for path in documented() for name in path.split(".")}
    missing = {key for node in found for key in keys(node)} - known - REQUESTS
    assert not missing, f"docs/status-json.md does not tell of {sorted(missing)}"


def test_every_counter_of_a_disk_is_documented():
    source = (ROOT / "vmm/_native/disk/blkpump.pyx").read_text()
    body = source.partition("def counters(self)")[2].partition("\n\n")[0]
    counters = re.findall(r'"(\w+)": self\.', body)
    assert len(counters) > 5
    assert {f"devices[].{name}" for name in counters} <= set(documented())


def test_no_other_function_is_forgotten():
    """Whatever is called status() and returns facts is in the list above.

    Overlays are disks of scripts' guests, and devices by name a script's, which no `status` shows.
    """
    told = {
        str(path.relative_to(ROOT))
        for top in ("vmm", "devices")
        for path in (ROOT / top).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name == "status" and list(keys(node))
    }
    scripts = {"vmm/host/overlay.py", "vmm/debug/devices.py"}
    assert told - scripts <= {file for file, _ in SOURCES}


def test_numbers_have_units():
    """A key whose name promises one has it."""
    for path, unit in documented().items():
        name = path.rpartition(".")[2]
        for ending, wanted in (("_s", "s"), ("_ms", "ms"), ("_bytes", "bytes"), ("size", "bytes")):
            if name.endswith(ending):
                assert unit == wanted, path
