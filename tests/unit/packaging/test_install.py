"""`make install`, `make uninstall` and the Debian package, into folders of a test."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.support.binary import BINARY
from tests.support.packaging_tools import PACKAGING, run

ROOT = PACKAGING.parent
NAME = "vllmd-hypervisor"
DOCUMENTS = ["LICENSE", "README.md", "CHANGELOG.md"]
COMMON = {
    f"bin/{NAME}", f"share/man/man8/{NAME}.8", f"share/bash-completion/completions/{NAME}",
    f"share/fish/vendor_completions.d/{NAME}.fish", "lib/sysusers.d/vllmd.conf",
    f"lib/systemd/system/{NAME}@.service", "lib/systemd/system/vllmd-bind@.service",
    f"lib/systemd/user/{NAME}@.service", "lib/systemd/system/vllmd.slice",
    "lib/systemd/user/vllmd.slice", "lib/systemd/system/vllmd-prepare@.service",
}  # fmt: skip
LOGROTATE = f"etc/logrotate.d/{NAME}"


def executable(path: Path) -> None:
    """Ours where it is built, else another static one."""
    if BINARY.exists():
        shutil.copy(BINARY, path)
        return
    program = "int main(void) { return 0; }"
    run("gcc", "-static", "-s", "-x", "c", "-o", path, "-", input=program)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """What `make binary` and the documents' rules leave."""
    folder = tmp_path_factory.mktemp("tree")
    for name in ("packaging", "docs", "vmm"):
        if (ROOT / name).exists():
            ignore = shutil.ignore_patterns("__pycache__", "*.so")
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in [*DOCUMENTS, "Makefile", "setup.py", "pyproject.toml"]:
        shutil.copy(ROOT / name, folder)
    (folder / "dist").mkdir()
    executable(folder / "dist" / NAME)
    documents = [f"dist/{NAME}.{kind}" for kind in ("8", "bash", "zsh", "fish")]
    run("make", f"PYTHON={sys.executable}", *documents, cwd=folder)
    return folder


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def make(tree: Path, verb: str, destination: Path) -> str:
    return run(tree / "packaging/install.sh", verb, destination, "/opt/x")


def test_everything_is_installed_and_removed(tree, tmp_path):
    destination = tmp_path / "root"
    make(tree, "install", destination)
    found = files(destination)
    assert {f"opt/x/{name}" for name in COMMON} <= found
    assert {f"opt/x/share/doc/{NAME}/{name}" for name in DOCUMENTS} <= found
    assert {f"opt/x/share/zsh/site-functions/_{NAME}", LOGROTATE} <= found
    assert len(found) == len(COMMON) + len(DOCUMENTS) + 2 + len(list((tree / "docs").glob("*.md")))
    unit = (destination / f"opt/x/lib/systemd/system/{NAME}@.service").read_text()
    assert f"\nExecStart=/opt/x/bin/{NAME} start\n" in unit
    prepare = (destination / "opt/x/lib/systemd/system/vllmd-prepare@.service").read_text()
    assert f"$(/opt/x/bin/{NAME} env --unit " in prepare
    assert os.access(destination / f"opt/x/bin/{NAME}", os.X_OK)
    other = destination / "opt/x/share/man/man8/other.8"
    other.touch()
    assert "left: /etc/vllmd" in make(tree, "uninstall", destination)
    assert files(destination) == {str(other.relative_to(destination))}
    assert not (destination / f"opt/x/share/doc/{NAME}").exists()
    make(tree, "uninstall", destination)


def test_a_changed_configuration_file_is_its_administrator_s(tree, tmp_path):
    make(tree, "install", tmp_path)
    (tmp_path / LOGROTATE).write_text("# mine\n")
    for verb in ("install", "uninstall"):
        assert f"kept, since it was changed: {tmp_path}/{LOGROTATE}" in make(tree, verb, tmp_path)
        assert (tmp_path / LOGROTATE).read_text() == "# mine\n"


@pytest.mark.parametrize("verb", ["install", "uninstall"])
def test_make_does_it(tree, verb):
    """The rules of the Makefile call it, after what they need."""
    told = run("make", "-n", verb, "DESTDIR=/d", "PREFIX=/p", cwd=ROOT)
    assert f'packaging/install.sh {verb} "/d" "/p"' in told


def needs(tool: str, package: str) -> None:
    if shutil.which(tool) is None:
        assert os.environ.get("VLLMD_TEST_LAB") != "1", f"apt-get install {package}"
        pytest.skip(f"needs {tool} (apt-get install {package})")


@pytest.fixture(scope="module")
def package(tree, tmp_path_factory) -> Path:
    needs("dpkg-deb", "dpkg-dev")
    env = {**os.environ, "DPKG_DEB_COMPRESSOR_TYPE": "gzip", "SOURCE_DATE_EPOCH": "1700000000"}
    built = []
    for name in ("one", "two"):
        folder = tmp_path_factory.mktemp(name)
        built.append(Path(run(tree / "packaging/debian/build.sh", folder, env=env).strip()))
    assert built[0].read_bytes() == built[1].read_bytes(), "not the same bytes twice"
    return built[0]


def test_the_package_has_everything_where_debian_wants_it(package, tmp_path):
    run("dpkg-deb", "--extract", package, tmp_path)
    found = files(tmp_path)
    assert {f"usr/{name}" for name in COMMON if "man8" not in name} <= found
    assert {
        LOGROTATE, f"usr/share/man/man8/{NAME}.8.gz", f"usr/share/zsh/vendor-completions/_{NAME}",
        f"usr/share/doc/{NAME}/copyright", f"usr/share/doc/{NAME}/changelog.gz",
        f"usr/share/doc/{NAME}/changelog.Debian.gz",
    } <= found  # fmt: skip
    assert (tmp_path / "etc/vllmd").is_dir()
    assert run("dpkg-deb", "--info", package, "conffiles") == f"/{LOGROTATE}\n"
    unit = (tmp_path / f"usr/lib/systemd/system/{NAME}@.service").read_text()
    assert f"\nExecStart=/usr/bin/{NAME} start\n" in unit
    control = run("dpkg-deb", "--field", package)
    assert "\nDepends: systemd" in control
    assert "@" not in control.replace("@example.org", ""), "a place of the template is not filled"
    for script in ("postinst", "prerm", "postrm"):
        run("sh", "-n", PACKAGING / "debian" / script)


@pytest.mark.timeout(300)
def test_lintian_finds_no_error(package):
    needs("lintian", "lintian")
    run("lintian", "--fail-on", "error", "--allow-root", package)


def test_installed_removed_and_purged_by_dpkg(package, tmp_path):
    """Without its scripts and dependencies, which a lab has."""
    if os.geteuid() != 0:
        pytest.skip("dpkg wants root")
    for folder in ("var/lib/dpkg/updates", "var/lib/dpkg/info", "var/lib/dpkg/triggers"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "var/lib/dpkg/status").touch()
    (tmp_path / "var/lib/dpkg/available").touch()
    work = tmp_path / "work"
    run("dpkg-deb", "--raw-extract", package, work)
    for script in ("postinst", "prerm", "postrm"):
        (work / "DEBIAN" / script).unlink()
    plain = tmp_path / "plain.deb"
    run("dpkg-deb", "--root-owner-group", "-Znone", "--build", work, plain)
    root = tmp_path / "root"
    dpkg = ["dpkg", f"--root={root}", f"--admindir={tmp_path}/var/lib/dpkg", "--force-depends"]
    dpkg += ["--force-not-root", "--log=/dev/null"]
    root.mkdir()
    run(*dpkg, "--install", plain)
    assert {LOGROTATE, f"usr/bin/{NAME}"} <= files(root)
    (root / LOGROTATE).write_text("# mine\n")
    run(*dpkg, "--force-confdef", "--install", plain)
    assert (root / LOGROTATE).read_text() == "# mine\n"
    run(*dpkg, "--remove", NAME)
    assert files(root) == {LOGROTATE}
    run(*dpkg, "--purge", NAME)
    assert files(root) == set()
