"""Debian packages by name, without installing them: downloaded, unpacked, kept by version."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from tests.lab.cache import cache_directory, cached, locked
from tests.lab.progress import step

MIRROR = os.environ.get("VLLMD_TEST_MIRROR", "http://deb.debian.org/debian")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
LISTS_MAX_AGE_SECONDS = 7 * 24 * 3600


class PackageError(RuntimeError):
    """A package cannot be had; the text says what was tried."""


def run(command: list[str], **options: object) -> str:
    """The command's output; PackageError with all of it when it fails."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )  # type: ignore[call-overload]
    if done.returncode:
        raise PackageError(f"{' '.join(command)}: status {done.returncode}\n{done.stdout}")
    return str(done.stdout)


def apt_options(suite: str | None) -> list[str]:
    """Options that make apt use a sources list of our own for another suite."""
    if suite is None:
        return []
    base = cache_directory() / f"apt-{suite}"
    lists = base / "lists"
    options = [
        "-o", f"Dir::Etc::sourcelist={base}/sources.list", "-o", "Dir::Etc::sourceparts=-",
        "-o", f"Dir::State::lists={lists}", "-o", f"Dir::Cache={base}/cache",
        "-o", "APT::Get::List-Cleanup=0",
    ]  # fmt: skip
    with locked(f"apt-{suite}"):
        stamp = base / "updated"
        fresh = stamp.exists() and time.time() - stamp.stat().st_mtime < LISTS_MAX_AGE_SECONDS
        if not fresh:
            with step(f"reading the package lists of Debian's {suite}"):
                (lists / "partial").mkdir(parents=True, exist_ok=True)
                (base / "cache/archives/partial").mkdir(parents=True, exist_ok=True)
                (base / "sources.list").write_text(
                    f"deb [signed-by={KEYRING}] {MIRROR} {suite} main\n"
                )
                run(["apt-get", *options, "-q", "update"])
                stamp.touch()
    return options


def newest(package: str, suite: str | None = None) -> tuple[str, str]:
    """(name, version) of what a package stands for: a metapackage names its kernel."""
    options = apt_options(suite)
    shown = run(["apt-cache", *options, "show", "--no-all-versions", package])
    fields = dict(line.split(": ", 1) for line in shown.splitlines() if ": " in line)
    depends = fields.get("Depends", "")
    if package.startswith("linux-image-") and depends.startswith("linux-image-"):
        return newest(depends.split(",")[0].split()[0], suite)
    return package, fields["Version"]


def unpacked(package: str, suite: str | None = None) -> Path:
    """A folder with the content of the newest version of ``package``."""
    name, version = newest(package, suite)

    def make(path: Path) -> None:
        with step(f"fetching Debian's {name} {version}"):
            download = path.parent / "download"
            download.mkdir()
            run(["apt-get", *apt_options(suite), "-q", "download", name], cwd=download)
            (archive,) = download.glob("*.deb")
            run(["dpkg-deb", "--extract", str(archive), str(path)])

    return cached(f"{name}_{version.replace(':', '%3a').replace('/', '_')}", make)
