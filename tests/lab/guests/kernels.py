"""Debian's kernels: image, modules in loading order, and the ELF inside a bzImage."""

from __future__ import annotations

import lzma
import subprocess
from pathlib import Path

from tests.lab.guests.cache import cached
from tests.lab.guests.packages import apt_options, run, unpacked
from tests.lab.rig.progress import step

# How kernels are packed (scripts/Makefile.lib): all but gzip have their size appended, 4 bytes.
COMMANDS = {
    b"\x1f\x8b\x08": (["gzip", "-dc"], 0),
    b"\xfd7zXZ\x00": (["xz", "-dc"], 4),
    b"\x28\xb5\x2f\xfd": (["zstd", "-dcq"], 4),
    b"\x02\x21\x4c\x18": (["lz4", "-dcq"], 4),
}


class Kernel:
    """One kernel package: ``image`` (a bzImage) and its modules."""

    def __init__(self, package: str, suite: str | None = None) -> None:
        self.suite = suite
        self.root = unpacked(package, suite)
        (self.image,) = self.root.glob("boot/vmlinuz-*")
        self.release = self.image.name.removeprefix("vmlinuz-")
        modules = self.root / "lib/modules"
        if not modules.exists():
            modules = self.root / "usr/lib/modules"
        self.modules = modules / self.release
        if not (self.modules / "modules.dep").exists():
            run(["depmod", "-b", str(modules.parents[1]), self.release])

    def load_order(self, names: list[str]) -> list[Path]:
        """Files of the modules named and of all they need, in the order of loading.

        A name that is built into the kernel needs no file; an unknown one is a LookupError.
        """
        rows = {}
        for line in (self.modules / "modules.dep").read_text().splitlines():
            path, _, needs = line.partition(":")
            rows[stem(path)] = [path, *needs.split()]
        builtin = {stem(p) for p in (self.modules / "modules.builtin").read_text().split()}
        order: dict[str, None] = {}
        for name in names:
            key = name.replace("-", "_")
            if key in builtin:
                continue
            if key not in rows:
                raise LookupError(f"{self.release} has no module {name}")
            for path in [*reversed(rows[key][1:]), rows[key][0]]:
                order.setdefault(path)
        return [self.modules / path for path in order]

    def module_bytes(self, path: Path) -> bytes:
        """A module's content, uncompressed."""
        data = path.read_bytes()
        return lzma.decompress(data) if path.suffix == ".xz" else data

    def vmlinux(self) -> Path:
        """The ELF kernel that the bzImage holds, taken out once."""

        def make(path: Path) -> None:
            with step(f"taking the ELF kernel out of {self.image.name}"):
                path.write_bytes(extract_vmlinux(self.image.read_bytes()))

        return cached(f"vmlinux-{self.root.name}", make)

    def debug_vmlinux(self) -> Path:
        """The ELF kernel with its debug information, of the -dbg package: 0.6 GB, taken once."""
        package, _, _ = self.root.name.partition("_")

        def make(path: Path) -> None:
            with step(f"fetching the debug information of {self.release}"):
                path.parent.joinpath("download").mkdir()
                download = path.parent / "download"
                run(["apt-get", *apt_options(self.suite), "-q", "download", f"{package}-dbg"],
                    cwd=download)  # fmt: skip
                (archive,) = download.glob("*.deb")
                name = f"./usr/lib/debug/boot/vmlinux-{self.release}"
                with open(path, "wb") as file:
                    dpkg = subprocess.Popen(
                        ["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE
                    )
                    subprocess.run(
                        ["tar", "--extract", "--to-stdout", name], stdin=dpkg.stdout, stdout=file,
                        check=True,
                    )  # fmt: skip
                    dpkg.wait()

        return cached(f"vmlinux-debug-{self.root.name}", make)


def stem(path: str) -> str:
    return Path(path).name.split(".ko")[0].replace("-", "_")


def extract_vmlinux(image: bytes) -> bytes:
    """The payload of a bzImage (Documentation/arch/x86/boot.rst: payload_offset, _length)."""
    setup_sectors = image[0x1F1] or 4
    start = (setup_sectors + 1) * 512 + int.from_bytes(image[0x248:0x24C], "little")
    length = int.from_bytes(image[0x24C:0x250], "little")
    payload = image[start : start + length]
    for magic, (command, extra) in COMMANDS.items():
        if payload.startswith(magic):
            packed = payload[: len(payload) - extra]
            found = subprocess.run(command, input=packed, stdout=subprocess.PIPE, check=True).stdout
            if not found.startswith(b"\x7fELF"):
                raise ValueError("the payload is no ELF file")
            return found
    raise ValueError(f"unknown compression: {payload[:6].hex(' ')}")
