"""What this program is made of, for --version."""

from __future__ import annotations

import sys

import vmm
from vmm import PROGRAM, __version__
from vmm._native.kvm.vm import API_VERSION, HEADERS_VERSION


def commit() -> str:
    """The commit it was built from, as the build wrote it down; "unknown" in a source tree."""
    try:
        from vmm._commit import COMMIT
    except ImportError:
        return "unknown"
    return str(COMMIT)


def describe() -> str:
    """One line: version, commit, Python, KVM API, kernel headers."""
    python = ".".join([str(part) for part in sys.version_info[:3]])
    headers = ".".join([str(part) for part in HEADERS_VERSION])
    return (
        f"{__version__} (commit {commit()}, Python {python}, KVM API {API_VERSION}, "
        f"kernel headers {headers})"
    )


def describe_parts() -> str:
    """A line for each part by others: name, version, licence, as the build or pip knows them."""
    if vmm.__spec__ is not None and vmm.__spec__.origin == "frozen":
        rows, more = built_in(), []
    else:
        rows = sorted([*built_in(), *installed_beside()])
        more = [f"of this host: {path}" for path in shared_libraries()]
    widths = [max([len(row[column]) for row in rows]) for column in (0, 1)]
    lines = [f"{name:{widths[0]}}  {version:{widths[1]}}  {how}" for name, version, how in rows]
    return "\n".join([*lines, *more])


def built_in() -> list[tuple[str, str, str]]:
    """What the build wrote down of others' code in what it made; nothing in a source tree."""
    try:
        from vmm._parts import PARTS
    except ImportError:
        return []
    return [(name, version, licence) for name, version, licence, _ in PARTS]


def installed_beside() -> list[tuple[str, str, str]]:
    """Python, and the distributions that this one asks pip for."""
    from importlib.metadata import PackageNotFoundError, metadata, requires

    rows = [("Python", sys.version.split()[0], "PSF-2.0")]
    try:
        wanted = [row for row in requires(PROGRAM) or [] if "extra ==" not in row]
    except PackageNotFoundError:
        return rows  # run from its tree
    for row in wanted:
        name = row.partition(">")[0].strip()
        try:
            facts = metadata(name)
        except PackageNotFoundError:
            rows.append((name, "-", "not installed"))
            continue
        known = [facts[key] for key in ("License-Expression", "License") if key in facts]
        rows.append((facts["Name"], facts["Version"], (known or ["not told"])[0].split("\n")[0]))
    return rows


def shared_libraries() -> list[str]:
    """The host's libraries that native modules have been linked with, as the kernel maps them."""
    from contextlib import suppress

    with suppress(ImportError):  # built without
        import vmm._native.disk.uring  # noqa: F401
    with open("/proc/self/maps") as file:
        paths = {line.split(maxsplit=5)[5].strip() for line in file if "/" in line}
    found = [path for path in paths if path.rpartition("/")[2].startswith(("libc.", "liburing."))]
    return sorted(found)
