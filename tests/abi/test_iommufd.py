"""Our header for iommufd against the kernel's own, and against the numbers of its ABI."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HEADER = Path(__file__).resolve().parents[2] / "vmm/_native/linux/iommufd_compat.h"
SYSTEM = Path("/usr/include/linux/iommufd.h")
FIELDS = {
    "iommu_ioas_alloc": ["size", "flags", "out_ioas_id"],
    "iommu_iova_range": ["start", "last"],
    "iommu_ioas_iova_ranges": [
        "size", "ioas_id", "num_iovas", "allowed_iovas", "out_iova_alignment",
    ],
    "iommu_ioas_map": ["size", "flags", "ioas_id", "user_va", "length", "iova"],
    "iommu_ioas_unmap": ["size", "ioas_id", "iova", "length"],
    "vfio_device_bind_iommufd": ["argsz", "flags", "iommufd", "out_devid"],
    "vfio_device_attach_iommufd_pt": ["argsz", "flags", "pt_id"],
}  # fmt: skip
# Longer in newer kernels; the kernel goes by the size that it is given.
GROWN = {"vfio_device_bind_iommufd", "vfio_device_attach_iommufd_pt"}
NUMBERS = {
    "IOMMU_IOAS_ALLOC": 0x3B81, "IOMMU_IOAS_IOVA_RANGES": 0x3B84,
    "IOMMU_IOAS_MAP": 0x3B85, "IOMMU_IOAS_UNMAP": 0x3B86, "VFIO_DEVICE_BIND_IOMMUFD": 0x3B76,
    "VFIO_DEVICE_ATTACH_IOMMUFD_PT": 0x3B77, "IOMMU_IOAS_MAP_FIXED_IOVA": 1,
    "IOMMU_IOAS_MAP_WRITEABLE": 2, "IOMMU_IOAS_MAP_READABLE": 4,
}  # fmt: skip
SIZES = {
    "iommu_ioas_alloc": 12, "iommu_iova_range": 16,
    "iommu_ioas_iova_ranges": 32, "iommu_ioas_map": 40, "iommu_ioas_unmap": 24,
    "vfio_device_bind_iommufd": 16, "vfio_device_attach_iommufd_pt": 12,
}  # fmt: skip


def expressions() -> list[str]:
    found = [f"offsetof(struct {name}, {field})" for name in FIELDS for field in FIELDS[name]]
    return [*found, *NUMBERS, *[f"sizeof(struct {name})" for name in SIZES]]


def measure(folder: Path, *includes: str) -> dict[str, int]:
    """What a C compiler says with these headers."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc (apt-get install gcc libc6-dev)")
    lines = "".join(f'printf("%ld\\n", (long)({text}));' for text in expressions())
    top = "".join(f"{line}\n" for line in ("#include <stddef.h>", "#include <stdio.h>", *includes))
    (folder / "probe.c").write_text(f"{top}int main(void) {{ {lines} return 0; }}")
    subprocess.run(["gcc", "-o", folder / "probe", folder / "probe.c"], check=True)
    out = subprocess.run([folder / "probe"], check=True, capture_output=True, text=True).stdout
    return dict(zip(expressions(), map(int, out.split()), strict=True))


def own(folder: Path) -> dict[str, int]:
    return measure(folder, "#define VLLMD_IOMMUFD_OWN", f'#include "{HEADER}"')


def compare(folder: Path, *includes: str) -> None:
    """Our header and another agree; a structure that grew may be longer at its end."""
    ours, theirs = own(folder), measure(folder, *includes)
    grown = {f"sizeof(struct {name})" for name in GROWN}
    different = {
        text: (value, theirs[text])
        for text, value in ours.items()
        if value != theirs[text] and not (text in grown and value < theirs[text])
    }
    assert not different


def test_numbers(tmp_path):
    found = own(tmp_path)
    assert {name: found[name] for name in NUMBERS} == NUMBERS
    assert {name: found[f"sizeof(struct {name})"] for name in SIZES} == SIZES


@pytest.mark.skipif(not SYSTEM.exists(), reason=f"no {SYSTEM}: this system's headers are older")
def test_the_system_s_header_agrees(tmp_path):
    compare(tmp_path, "#include <linux/vfio.h>", "#include <linux/iommufd.h>")
