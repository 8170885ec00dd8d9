"""Debian's 6.12 kernel with iommufd: no Debian kernel has it, so its modules are built from source.

Only modules change (iommufd, and vfio with its device files); the image is Debian's own. The
source, the headers and the compiler are Debian's for this very kernel.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

from tests.lab.guests.cache import cached
from tests.lab.guests.kernels import Kernel
from tests.lab.guests.packages import run, unpacked
from tests.lab.rig.progress import step

SUITE = "bookworm-backports"
SERIES = "6.12"
COMPILER = "gcc-12"
# drivers/iommu/iommufd/Kconfig, drivers/vfio/Kconfig: what Debian leaves off.
SETTINGS = {"IOMMUFD": "m", "VFIO_DEVICE_CDEV": "y", "INTERVAL_TREE_SPAN_ITER": "y"}
# What is not needed, or would need a change of the image.
OFF = ("IOMMUFD_TEST", "IOMMUFD_DRIVER", "VFIO_MDEV", "DEBUG_INFO_BTF_MODULES")
FOLDERS = ("drivers/iommu/iommufd", "drivers/vfio", "drivers/vfio/pci")
INTERVAL_TREE = "lib/interval_tree.c"


class IommufdKernel(Kernel):
    """As Kernel: ``image``, ``modules``, ``release``."""

    def __init__(self) -> None:
        plain = Kernel("linux-image-amd64", SUITE)
        self.root = cached(f"{plain.root.name}-iommufd", lambda path: make_root(path, plain))
        self.release = plain.release
        self.image = plain.image
        self.modules = self.root / "lib/modules" / self.release


def headers() -> Path:
    """Where this kernel's uapi headers are."""
    release = Kernel("linux-image-amd64", SUITE).release.removesuffix("-amd64")
    return unpacked(f"linux-headers-{release}-common", SUITE) / (
        f"usr/src/linux-headers-{release}-common/include/uapi"
    )


def make_root(path: Path, plain: Kernel) -> None:
    """lib/modules with the modules that were built in place of Debian's."""
    target = path / "lib/modules" / plain.release
    shutil.copytree(plain.modules, target, copy_function=os.link, symlinks=True)
    with step(f"building iommufd for {plain.release}"):
        built = build_modules(path.parent / "build", plain.release)
    for old in target.rglob("vfio*.ko*"):
        old.unlink()
    (target / "updates").mkdir(exist_ok=True)
    for module in built:
        run(["strip", "--strip-debug", "-o", str(target / "updates" / module.name), str(module)])
    for index in target.glob("modules.*"):
        if index.name not in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
            index.unlink()
    run(["depmod", "-b", str(path), plain.release])


def build_modules(work: Path, release: str) -> list[Path]:
    """Unpack the source's two folders beside the headers, and make them."""
    version = release.removesuffix("-amd64")
    for package in (
        f"linux-headers-{release}", f"linux-headers-{version}-common", f"linux-kbuild-{version}",
    ):  # fmt: skip
        shutil.copytree(unpacked(package, SUITE), work, symlinks=True, dirs_exist_ok=True)
    headers = work / "usr/src" / f"linux-headers-{release}"
    makefile = headers / "Makefile"
    makefile.write_text(makefile.read_text().replace("/usr/src", str(work / "usr/src")))
    modules = work / "modules"
    unpack_source(modules)
    (modules / "Kbuild").write_text("obj-m += drivers/iommu/iommufd/ drivers/vfio/\n")
    flags = [
        f"-DCONFIG_{name}{'_MODULE' if value == 'm' else ''}=1" for name, value in SETTINGS.items()
    ]
    settings = [f"CONFIG_{name}={value}" for name, value in SETTINGS.items()]
    settings += [f"CONFIG_{name}=" for name in OFF]
    run(
        ["make", "-C", str(headers), f"M={modules}", f"CC={COMPILER}", "CROSS_COMPILE=",
         f"KCFLAGS={' '.join(flags)}", *settings, "modules"],
    )  # fmt: skip
    return sorted(modules.rglob("*.ko"))


def unpack_source(target: Path) -> None:
    """The folders' files, and the interval tree's spans, which Debian's image is without."""
    package = unpacked(f"linux-source-{SERIES}", SUITE)
    top = f"linux-source-{SERIES}/"
    with tarfile.open(package / f"usr/src/linux-source-{SERIES}.tar.xz") as archive:
        for member in archive:
            name = member.name.removeprefix(top)
            folder = os.path.dirname(name)
            header = folder == "drivers/iommu" and name.endswith(".h")
            if member.isfile() and (folder in FOLDERS or header or name == INTERVAL_TREE):
                file = archive.extractfile(member)
                assert file is not None
                (target / folder).mkdir(parents=True, exist_ok=True)
                (target / name).write_bytes(file.read())
    source = (target / INTERVAL_TREE).read_text().splitlines(keepends=True)
    own = [line for line in source if not line.startswith("EXPORT_SYMBOL")]
    (target / FOLDERS[0] / "interval_tree.c").write_text("".join(own))
    with open(target / FOLDERS[0] / "Makefile", "a") as file:
        file.write("iommufd-y += interval_tree.o\n")
