"""Debian packages by name, without installing them: downloaded, unpacked, kept by version."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from tests.lab.guests.cache import cache_directory, cached, locked
from tests.lab.rig.progress import step

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


def apt_options(suite: str | None, base_suite: str | None = None) -> list[str]:
    """Options that make apt use a sources list of our own for another suite.

    ``base_suite``: the one that ``suite`` builds on, for packages with all that they depend on.
    """
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
                suites = [suite, base_suite] if base_suite else [suite]
                lines = [f"deb [signed-by={KEYRING}] {MIRROR} {name} main\n" for name in suites]
                (base / "sources.list").write_text("".join(lines))
                run(["apt-get", *options, "-q", "update"])
                stamp.touch()
    return options


def newest(package: str, suite: str | None = None) -> tuple[str, str]:
    """(name, version) of what a package stands for: a metapackage names its kernel."""
    options = apt_options(suite)
    fields = _show(options, package)
    depends = fields.get("Depends", "")
    if package.startswith("linux-image-") and depends.startswith("linux-image-"):
        return newest(depends.split(",")[0].split()[0], suite)
    return package, fields["Version"]


def _show(options: list[str], package: str) -> dict[str, str]:
    """The fields of a package's description (deb-control(5))."""
    shown = run(["apt-cache", *options, "show", "--no-all-versions", package])
    return dict(line.split(": ", 1) for line in shown.splitlines() if ": " in line)


def _unpack(path: Path, options: list[str], packages: list[str]) -> None:
    """Download packages, as apt-get(8) names them, and lay their content over each other."""
    download = path.parent / "download"
    download.mkdir()
    run(["apt-get", *options, "-q", "download", *packages], cwd=download)
    for archive in sorted(download.glob("*.deb")):
        run(["dpkg-deb", "--extract", str(archive), str(path)])


def unpacked(package: str, suite: str | None = None) -> Path:
    """A folder with the content of the newest version of ``package``."""
    name, version = newest(package, suite)

    def make(path: Path) -> None:
        with step(f"fetching Debian's {name} {version}"):
            _unpack(path, apt_options(suite), [name])

    return cached(f"{name}_{_file_name(version)}", make)


def unpacked_with_libraries(package: str, suite: str, base_suite: str) -> Path:
    """A folder with the package and everything that it depends on, for a loader of its own."""
    options = [*apt_options(suite, base_suite), "-o", "Dir::State::status=/dev/null"]
    version = _show([*options, "-t", suite], package)["Version"]

    def make(path: Path) -> None:
        with step(f"fetching Debian's {package} {version} with its libraries"):
            install = ["-q", "-y", "--no-install-recommends", "-t", suite, "--print-uris"]
            listed = run(["apt-get", *options, *install, "install", package])
            names = [line.split()[1] for line in listed.splitlines() if line.startswith("'")]
            # "name_version_architecture.deb" with the colon of an epoch as %3a.
            wanted = [f"{name.split('_')[0]}={name.split('_')[1]}" for name in names]
            _unpack(path, options, [each.replace("%3a", ":") for each in wanted])

    return cached(f"{package}-with-libraries_{_file_name(version)}", make)


def _file_name(version: str) -> str:
    return version.replace(":", "%3a").replace("/", "_")
