"""Whose code is in what is built: names, versions, licences, as this machine knows them.

The executable has its list inside (`--version --verbose`); packaging/sbom.py writes it as
CycloneDX. dpkg is asked for Debian's packages, their metadata for Python's. Licences come from
there, too: those whose copyright file is prose are named here, and held against a phrase of it.
"""

from __future__ import annotations

import re
import subprocess
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

MODULE = "vmm/_parts.py"
# Source package (a regular expression): licence, and what its copyright file says then.
PROSE = {
    r"glibc": ("LGPL-2.1-or-later", "either version 2.1 of the License, or (at your option)"),
    r"python3\.\d+": ("PSF-2.0", "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2"),
    r"gcc-\d+": ("GPL-3.0-or-later WITH GCC-exception-3.1", "GCC RUNTIME LIBRARY EXCEPTION"),
}
# Other ways in which the same licences are written.
SPDX = {"LGPL-2.1+": "LGPL-2.1-or-later", "zlib": "Zlib", "Expat": "MIT"}
# What a linker's map says of its inputs (ld(1), -Map).
INPUT = re.compile(r"^LOAD (\S+\.o)$", re.M)
MEMBER = re.compile(r"^(/\S+\.a)\(\S+\)", re.M)


class PartError(Exception):
    """It is not known whose some code is, or under which licence; the text says what helps."""


class Part(NamedTuple):
    """Somebody else's code: ``purl`` is a package URL, by which scanners know it."""

    name: str
    version: str
    licence: str
    purl: str


def ask(*command: str) -> str:
    """Output of a tool; PartError."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise PartError(f"{command[0]}: {error.strerror}; this needs a Debian system") from error
    if done.returncode:
        raise PartError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def inputs(map_text: str) -> set[Path]:
    """The objects, and the archives with a member that is in, of a linker's map."""
    members = map_text.partition("\nMemory Configuration")[0]
    found = MEMBER.findall(members) + [path for path in INPUT.findall(map_text) if path[0] == "/"]
    return {Path(path).resolve() for path in found}


def of_debian(files: set[Path]) -> list[Part]:
    """The source packages that files come from."""
    owners = ask("dpkg-query", "--search", *sorted(map(str, files)))
    packages = {line.partition(": ")[0] for line in owners.splitlines()}
    form = "${source:Package}\t${source:Version}\t${Package}\n"
    rows = ask("dpkg-query", "--show", f"--showformat={form}", *sorted(packages)).splitlines()
    found: dict[str, Part] = {}
    for row in rows:
        name, version, package = row.split("\t")
        purl = f"pkg:deb/debian/{quote(name, safe='.-')}@{quote(version)}?arch=source"
        found[name] = Part(name, version, debian_licence(name, package), purl)
    return [found[name] for name in sorted(found)]


def debian_licence(source: str, package: str, documents: Path = Path("/usr/share/doc")) -> str:
    """The licence of most of a package, as its copyright file has it; PartError."""
    path = documents / package / "copyright"
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        raise PartError(f"{path}: {error.strerror}; install the package again") from error
    if text.startswith("Format:"):
        # Machine-readable (copyright-format 1.0): the paragraph about all files.
        for paragraph in text.split("\n\n"):
            words = re.search(r"^License:\s*(.+)$", paragraph, re.M)
            if words and re.search(r"^Files:\s*\*$", paragraph, re.M):
                return SPDX.get(words[1].strip(), words[1].strip())
    for names, (licence, phrase) in PROSE.items():
        if re.fullmatch(names, source) and phrase in " ".join(text.split()):
            return licence
    raise PartError(f"{path} tells no licence that is known: read it, and add {source} to PROSE")


def of_python(name: str, folder: Path) -> Part:
    """An installed distribution, by its metadata; PartError."""
    # Distribution names compare like this (PEP 503).
    wanted = re.sub(r"[-_.]+", "-", name).lower()
    for found in distributions(path=[str(folder)]):
        if re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower() == wanted:
            return python_part(found)
    raise PartError(f"{folder} has no metadata of {name}: install it again, by pip")


def python_part(found: Distribution) -> Part:
    """Name, version and licence of a distribution, as its metadata tell them."""
    facts = found.metadata
    licence = facts.get("License-Expression") or (facts.get("License") or "").split("\n")[0]
    if not licence:
        told = [row for row in facts.get_all("Classifier") or [] if row.startswith("License ::")]
        licence = told[0].rpartition(":: ")[2] if told else "not told"
    name, version = facts["Name"], facts["Version"]
    return Part(name, version, licence, f"pkg:pypi/{name.lower()}@{quote(version)}")


def source_of(parts: list[Part]) -> str:
    """The source of vmm/_parts.py."""
    rows = "".join(f"    {tuple(part)!r},\n" for part in parts)
    return f'"""Written by the build."""\n\nPARTS = (\n{rows})\n'
