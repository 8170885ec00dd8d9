"""What the guest may change meanwhile is loaded once: no plain copy from its memory is checked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

NATIVE = Path(__file__).resolve().parents[2] / "vmm/_native"
READERS = sorted([*NATIVE.glob("virtio/*.pyx"), *NATIVE.glob("disk/*.pyx")])
# A copy out of a segment, a vector of one, or a table in guest RAM.
PLAIN = re.compile(r"memcpy\([^,]+,\s*[^,]*(\.hva|iov_base|self\.table|&table\[|\btable\b)")
PLAIN_LOAD = re.compile(r"=\s*(self\.)?table\[")


@pytest.mark.parametrize("path", READERS, ids=lambda path: path.stem)
def test_no_plain_copy_from_guest_memory(path):
    text = path.read_text()
    for pattern in (PLAIN, PLAIN_LOAD):
        found = pattern.search(text)
        assert found is None, f"{path.name}: {found.group(0)}: use fetch_bytes()"


def test_the_compiler_keeps_the_loads():
    text = (NATIVE / "virtio/virtqueue.pxd").read_text()
    for name in ("fetch_bytes", "fetch_16_bytes"):
        body = text.partition(f"static inline void {name}(")[2].partition("\n    }")[0]
        assert "const volatile" in body
