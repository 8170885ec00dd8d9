"""What this program is made of, for --version."""

from __future__ import annotations

import sys

from vmm import __version__
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
