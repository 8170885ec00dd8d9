"""Whose code is in what is built: from dpkg, metadata and the linker's map, and as CycloneDX."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.support.packaging_tools import load
from vmm import PROGRAM

parts = load("parts")
sbom = load("sbom")
MAP = """Archive member included to satisfy reference by file (symbol)

/usr/lib/x86_64-linux-gnu/libz.a(inflate.o)
                              /x/vmm.o (inflate)
/usr/lib/x86_64-linux-gnu/libc.a(printf.o)
                              /x/vmm.o (printf)

Memory Configuration

LOAD /usr/lib/x86_64-linux-gnu/crt1.o
LOAD build/binary/vmm.o
LOAD /usr/lib/x86_64-linux-gnu/libunused.a
"""


def test_what_a_linker_took():
    names = {path.name for path in parts.inputs(MAP)}
    assert names == {"libz.a", "libc.a", "crt1.o"}


def copyright_file(folder: Path, text: str) -> None:
    (folder / "some").mkdir()
    (folder / "some/copyright").write_text(text)


def test_a_licence_that_a_machine_can_read(tmp_path):
    copyright_file(
        tmp_path,
        "Format: https://x\n\nFiles:\n debian/*\nLicense: GPL-2\n\n"
        "Files:\n *\nLicense: LGPL-2.1+\n",
    )
    assert parts.debian_licence("whatever", "some", tmp_path) == "LGPL-2.1-or-later"


def test_prose_is_held_against_a_phrase(tmp_path):
    copyright_file(tmp_path, "either\n version 2.1 of the License, or (at\n your option) any")
    assert parts.debian_licence("glibc", "some", tmp_path) == "LGPL-2.1-or-later"
    (tmp_path / "some/copyright").write_text("another licence")
    with pytest.raises(parts.PartError, match="add glibc to PROSE"):
        parts.debian_licence("glibc", "some", tmp_path)
    with pytest.raises(parts.PartError, match="other/copyright"):
        parts.debian_licence("glibc", "other", tmp_path)


@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="needs Debian's dpkg-query")
def test_debian_is_asked():
    libc = subprocess.run(
        ["gcc", "-print-file-name=libc.a"], capture_output=True, text=True, check=True
    ).stdout.strip()
    (found,) = parts.of_debian({Path(libc).resolve()})
    assert (found.name, found.licence) == ("glibc", "LGPL-2.1-or-later")
    form = "--showformat=${source:Version}"
    told = subprocess.run(
        ["dpkg-query", "--show", form, "libc6-dev"], capture_output=True, text=True
    )
    assert found.version == told.stdout
    with pytest.raises(parts.PartError, match="no path found"):
        parts.of_debian({Path("/nobody/has/this.a")})


def test_metadata_is_asked():
    import elftools

    folder = Path(elftools.__path__[0]).parent
    found = parts.of_python("PyElfTools", folder)
    assert found[:3] == ("pyelftools", version("pyelftools"), "Public domain")
    with pytest.raises(parts.PartError, match="no metadata of nothing-of-that-name"):
        parts.of_python("nothing-of-that-name", folder)


def test_the_module_s_source_is_the_list():
    names: dict[str, object] = {}
    rows = [parts.Part("a", "1", "MIT", "pkg:generic/a@1")]
    exec(parts.source_of(rows), names)
    assert names["PARTS"] == (("a", "1", "MIT", "pkg:generic/a@1"),)


def written(file: Path, inside: list[object], beside: list[object]) -> dict[str, object]:
    """The document, held against the standard's own schema."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = sbom.document(file, inside, beside)
    assert sbom.document(file, inside, beside) == text
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(text) is None
    assert validator.validate_str(text.replace('"version"', '"vers"')) is not None
    found: dict[str, object] = json.loads(text)
    return found


def test_a_bill_of_materials_of_the_executable(tmp_path):
    rows = [
        ["glibc", "2.36-9", "LGPL-2.1-or-later", "pkg:deb/debian/glibc@2.36-9?arch=source"],
        ["pyelftools", "0.33", "Public domain", "pkg:pypi/pyelftools@0.33"],
    ]
    (tmp_path / "program").write_bytes(b"program")
    document = written(tmp_path / "program", [parts.Part(*row) for row in rows], [])
    whole = document["metadata"]["component"]  # type: ignore[index]
    assert whole["name"] == PROGRAM
    assert whole["hashes"][0]["content"] == hashlib.sha256(b"program").hexdigest()
    found = {one["name"]: one for one in document["components"]}  # type: ignore[attr-defined]
    assert found["glibc"]["version"] == "2.36-9"
    assert found["glibc"]["licenses"][0]["license"]["id"] == "LGPL-2.1-or-later"
    assert found["pyelftools"]["licenses"][0]["license"]["name"] == "Public domain"


def test_a_bill_of_materials_of_a_wheel(tmp_path):
    wheel = tmp_path / "x.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        cython = parts.Part("Cython", "3.3", "Apache-2.0", "pkg:pypi/cython@3.3")
        archive.writestr(parts.MODULE, parts.source_of([cython]))
        archive.writestr(
            "x.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: x\nVersion: 1\nRequires-Dist: numpy>=1.24\n"
            'Requires-Dist: nosuch>=1; extra == "research"\n',
        )
    document = written(wheel, *sbom.wheel_parts(wheel))
    found = {one["name"]: one["version"] for one in document["components"]}  # type: ignore[attr-defined]
    assert found == {"Cython": "3.3", "numpy": version("numpy")}
