"""A copy of the checkout's modules with its bundle, and the console script on it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "packaging/bin/vllmd-hypervisor"


def run(tree: Path, code: str, *options: str) -> str:
    """What a fresh interpreter prints, whose vmm is in ``tree``; it says nothing on stderr."""
    code = f"import sys; sys.path.insert(0, {str(tree)!r})\n{code}"
    done = subprocess.run(
        [sys.executable, "-I", "-S", *options, "-c", code], capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def write_bundle(tree: Path, editable: bool) -> Path:
    """Write the bundle of ``tree`` as the builds do."""
    code = f"import bundle; print(bundle.write(bundle.Path({str(tree)!r}), {editable}))"
    return Path(run(ROOT / "packaging", code))


def copy_checkout(tree: Path) -> Path:
    """Modules, native ones as well, and a bundle; an editable install of its own."""
    ignored = shutil.ignore_patterns("__pycache__", "*.bundle", "*.pyx", "*.pxd", "*.pyi")
    for top in ("vmm", "devices"):
        shutil.copytree(ROOT / top, tree / top, ignore=ignored)
    write_bundle(tree, editable=True)
    return tree


def start_verbosely(tree: Path, env: dict[str, str]) -> tuple[int, list[str]]:
    """Exit code of a `start` by the console script, and name and loader of what it imported."""
    done = subprocess.run(
        [sys.executable, "-v", str(SCRIPT), "start"], env={**env, "PYTHONPATH": str(tree)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    own = ("import 'vmm", "import 'devices")
    # import 'vmm.layout' # <vmm.light.bundle.Loader object at 0x7f0123456789>
    rows = [row.split() for row in done.stderr.splitlines() if row.startswith(own)]
    return done.returncode, [f"{row[1]} {row[3]}" for row in rows]


def not_bundled(imported: list[str]) -> list[str]:
    """Those modules of ours that were looked for in folders, but for the two that find the rest."""
    known = ("'vmm' ", "'vmm.light' ", "'vmm.light.bundle' ")
    plain = [row for row in imported if "SourceFileLoader" in row]
    return [row for row in plain if not row.startswith(known)]
