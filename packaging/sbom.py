"""Writes what is inside the executable or a wheel as CycloneDX 1.6: sbom.py FILE PARTS|- OUTPUT.

PARTS is parts.json of the executable's build, `-` for a wheel without it; a wheel has a list of its
own inside. `make sbom` runs it for both. The same file gives the same document: its number is made
of the file's digest.
"""

from __future__ import annotations

import email.parser
import hashlib
import json
import os
import re
import sys
import uuid
import zipfile
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from parts import MODULE, Part, python_part  # noqa: E402

from vmm import PROGRAM, __version__  # noqa: E402

LICENCE = "Apache-2.0"
LICENCES = LicenseFactory()


def component(part: Part, kind: ComponentType = ComponentType.LIBRARY) -> Component:
    """One entry; a licence that is no SPDX expression is given as it is written."""
    return Component(
        type=kind, name=part.name, version=part.version, bom_ref=part.purl,
        licenses=[LICENCES.make_from_string(part.licence)], purl=PackageURL.from_string(part.purl),
    )  # fmt: skip


def wheel_parts(path: Path) -> tuple[list[Part], list[Part]]:
    """(parts inside a wheel, what it asks pip for, as installed here)."""
    with zipfile.ZipFile(path) as archive:
        names: dict[str, list[tuple[str, str, str, str]]] = {}
        exec(archive.read(MODULE).decode(), names)
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        facts = email.parser.Parser().parsestr(archive.read(metadata).decode())
    wanted = []
    for row in facts.get_all("Requires-Dist") or []:
        if "extra ==" in row:
            continue
        name = re.split(r"[^\w.-]", row, maxsplit=1)[0]
        try:
            wanted.append(python_part(distribution(name)))
        except PackageNotFoundError as error:
            raise SystemExit(f"sbom.py: {name} is not installed here: make build") from error
    return [Part(*row) for row in names["PARTS"]], wanted


def document(path: Path, parts: list[Part], beside: list[Part]) -> str:
    """The bill of materials of a file, as JSON."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    whole = component(
        Part(PROGRAM, __version__, LICENCE, f"pkg:generic/{PROGRAM}@{__version__}"),
        ComponentType.APPLICATION,
    )
    whole.hashes.add(HashType(alg=HashAlgorithm.SHA_256, content=digest))
    bom = Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_OID, digest))
    bom.metadata.component = whole
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH", path.stat().st_mtime))
    bom.metadata.timestamp = datetime.fromtimestamp(seconds, UTC)
    inside, wanted = map(component, parts), map(component, beside)
    for one in [*inside, *wanted]:
        bom.components.add(one)
        bom.register_dependency(whole, [one])
    return str(JsonV1Dot6(bom).output_as_string(indent=2)) + "\n"


def main() -> int:
    """Write one document; returns the exit code."""
    path, listed, output = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    rows = [] if listed == "-" else json.loads(Path(listed).read_text())
    inside, beside = wheel_parts(path) if path.suffix == ".whl" else ([], [])
    parts = sorted({*inside, *(Part(*row) for row in rows)})
    output.write_text(document(path, parts, beside))
    print(f"{output}: {len(parts) + len(beside)} parts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
