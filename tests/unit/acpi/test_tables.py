"""ACPI tables by an independent reader: Debian's iasl disassembles and compiles each of them."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess

import pytest

from vmm import layout
from vmm.acpi.spec import AcpiSpec
from vmm.acpi.tables import build_acpi, checksum
from vmm.boot.smbios import build_smbios

WINDOW = (0x40_0000_0000, 0x40_0000_0000)
GED_GPA = 0xFF_FFFF_F000


def tables(count: int = 4) -> dict[str, bytes]:
    """Every table by its signature, found as a guest finds them: from the RSDP on."""
    blob = build_acpi(AcpiSpec(list(range(count)), WINDOW, GED_GPA))

    def at(gpa: int) -> bytes:
        start = gpa - layout.RSDP_GPA
        (length,) = struct.unpack_from("<I", blob, start + 4)
        return blob[start : start + length]

    assert blob[:8] == b"RSD PTR "
    assert sum(blob[:20]) & 0xFF == 0
    assert sum(blob[:36]) & 0xFF == 0
    (xsdt_gpa,) = struct.unpack_from("<Q", blob, 24)
    xsdt = at(xsdt_gpa)
    found = {"XSDT": xsdt}
    for (gpa,) in struct.iter_unpack("<Q", xsdt[36:]):
        table = at(gpa)
        found[table[:4].decode()] = table
    (dsdt_gpa,) = struct.unpack_from("<Q", found["FACP"], 140)
    found["DSDT"] = at(dsdt_gpa)
    return found


@pytest.mark.parametrize("count", [1, 4, 64, 255, 400])
def test_checksums_and_lengths(count):
    for name, table in tables(count).items():
        assert sum(table) & 0xFF == 0, name
        assert struct.unpack_from("<I", table, 4)[0] == len(table)
    assert checksum(b"") == 0


@pytest.mark.parametrize("count", [1, 4, 300])
@pytest.mark.parametrize("name", ["DSDT", "FACP", "APIC", "MCFG"])
def test_iasl_finds_nothing(tmp_path, name, count):
    if shutil.which("iasl") is None:
        assert os.environ.get("VLLMD_TEST_LAB") != "1", "apt-get install acpica-tools"
        pytest.skip("needs iasl (apt-get install acpica-tools)")
    path = tmp_path / f"{name}.aml"
    path.write_bytes(tables(count)[name])
    taken = subprocess.run(["iasl", "-d", path.name], cwd=tmp_path, capture_output=True, text=True)
    assert taken.returncode == 0, taken.stdout + taken.stderr
    made = subprocess.run(
        ["iasl", "-vw", "3150", f"{name}.dsl"], cwd=tmp_path, capture_output=True, text=True
    )
    assert "0 Errors" in made.stdout or made.returncode == 0, made.stdout + made.stderr
    if name == "DSDT":
        assert "0 Errors, 0 Warnings" in made.stdout, made.stdout


def test_every_vcpu_is_in_the_madt():
    body = tables(300)["APIC"][44:]
    ids = []
    while body:
        if body[0] == 9:
            ids.append(struct.unpack_from("<I", body, 4)[0])
        body = body[body[1] :]
    assert ids == list(range(300))


def test_the_most_vcpus_of_any_kernel_fit():
    blob = build_acpi(AcpiSpec(list(range(4096)), WINDOW, GED_GPA))
    assert layout.RSDP_GPA + len(blob) <= layout.SMBIOS_GPA


def test_smbios_checksum_and_end():
    blob = build_smbios()
    assert blob[:5] == b"_SM3_"
    assert sum(blob[: blob[6]]) & 0xFF == 0
    (address,) = struct.unpack_from("<Q", blob, 16)
    (size,) = struct.unpack_from("<I", blob, 12)
    start = address - layout.SMBIOS_GPA
    kinds = []
    while start < len(blob):
        kind, length = blob[start], blob[start + 1]
        kinds.append(kind)
        start = blob.index(b"\0\0", start + length) + 2
        if kind == 127:
            break
    assert kinds[:2] == [0, 1]
    assert kinds[-1] == 127
    assert start - (address - layout.SMBIOS_GPA) <= size
