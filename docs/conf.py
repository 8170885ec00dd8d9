"""Sphinx' settings; `make docs` builds into build/docs. Pictures are made by running examples."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
MADE = HERE / "_made"
sys.path.insert(0, str(ROOT))

import vmm  # noqa: E402

project = vmm.PROGRAM
release = vmm.__version__
author = "the authors of vllmd-hypervisor"
extensions = ["sphinx.ext.autodoc", "myst_parser"]
html_theme = "alabaster"
html_theme_options = {"description": "A guest in your hands", "page_width": "1100px"}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {"members": True, "undoc-members": False}
myst_heading_anchors = 3
# Documents that were there before link to files of the tree, which are no pages.
suppress_warnings = ["myst.xref_missing"]

# Says "hello", counts to 40 and reads a clock in between; runs on any KVM.
CODE = bytes.fromhex(
    "fa ff0500002000 66baf803 b068 ee b065 ee b06c ee ee b06f ee b020 ee"
    "66ba0806 ed 66ba7000 b000 ee 66ba7100 ec b9e8030000 e2fe"
    "833d0000200028 72c5 66ba0006 b034 ee f4"
)
NO_KVM = """\
```{note}
This copy was built on a machine without /dev/kvm: the examples could not be run here, and their
pictures are missing. `make docs` on a machine with KVM makes them.
```
"""


def run(example: str, kernel: Path) -> str:
    """What an example says of a tiny guest; its files are in MADE."""
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{example}.py"), str(kernel)],
        cwd=MADE, check=True, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ).stdout  # fmt: skip


def make_pictures(_app: object) -> None:
    """A page part for each example that draws: its picture and its words, or why there are none."""
    MADE.mkdir(exist_ok=True)
    sys.path.insert(0, str(ROOT / "examples"))
    from guests import tiny

    able = os.access("/dev/kvm", os.R_OK | os.W_OK)
    for example in ("trace_a_boot", "boot_times"):
        text = NO_KVM
        if able:
            said = run(example, tiny(MADE / "kernel.elf", CODE))
            text = f"```text\n{said}```\n\n![What {example}.py drew](/_made/{example}.png)\n"
        (MADE / f"{example}.txt").write_text(text)


def setup(app: object) -> None:
    """Sphinx calls it."""
    app.connect("builder-inited", make_pictures)  # type: ignore[attr-defined]
