"""A whole Debian 12 as a guest: systemd, the cloud kernel with Debian's own initramfs, ext4 root.

After multi-user.target a service runs the script ``run`` of the config disk, with its output on
the console. That script is how a test says what the guest shall do. A config disk labelled
``cidata`` is a NoCloud seed for cloud-init as well; one labelled ``job`` leaves it switched off.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.lab.guests.cache import cached
from tests.lab.guests.gpt import make_gpt, write_esp
from tests.lab.guests.images import make_ext4
from tests.lab.guests.packages import MIRROR, PackageError, newest, run, unpacked
from tests.lab.rig.progress import step

VERSION = "3"
GIB = 1 << 30
IMAGE_BYTES = 4 * GIB
INCLUDE = "systemd,systemd-sysv,udev,dbus,kmod,procps,fio,initramfs-tools,e2fsprogs,dosfstools"
KERNEL = "linux-image-cloud-amd64"
JOB_LABEL = "job"
# What a lab with all images calls them: a root file system, and two whole disks.
SYSTEM_DISK, DISK, GRUB_DISK = "/dev/vda", "/dev/vdb", "/dev/vdc"
OPTIONS = "root=LABEL=root ro quiet panic=-1 console=ttyS0"
LOADER_CONF = b"default debian\ntimeout 0\n"
LOADER_ENTRY = f"""title Debian
linux /vmlinuz
initrd /initrd
options {OPTIONS}
"""
GRUB_CONF = f"""set timeout=0
menuentry Debian {{
  # The root file system has a /vmlinuz, too.
  search --no-floppy --set=root --file /initrd
  linux /vmlinuz {OPTIONS}
  initrd /initrd
}}
"""
BOOT_PROGRAM = "EFI/BOOT/BOOTX64.EFI"
SERVICE = """[Unit]
Description=What the config disk asks for
After=multi-user.target

[Service]
Type=simple
ExecStart=/usr/local/sbin/run-config-disk

[Install]
WantedBy=multi-user.target
"""
RUNNER = """#!/bin/sh
mkdir -p /run/config
mount -o ro LABEL=job /run/config 2>/dev/null || mount -o ro LABEL=cidata /run/config
exec >/dev/console 2>&1
echo "guest: multi-user reached"
exec sh /run/config/run
"""
FILES = {
    "etc/fstab": "LABEL=root / ext4 errors=remount-ro 0 1\n",
    "etc/hostname": "guest\n",
    "etc/initramfs-tools/initramfs.conf": "MODULES=list\nBUSYBOX=n\nCOMPRESS=gzip\n",
    "etc/initramfs-tools/modules": "virtio_pci\nvirtio_blk\nvirtio_console\next4\n",
    "etc/systemd/system/config-disk.service": SERVICE,
    "usr/local/sbin/run-config-disk": RUNNER,
    "usr/sbin/policy-rc.d": "#!/bin/sh\nexit 101\n",
}
# Nobody logs in, and a prompt in the middle of a line of output spoils it.
UNWANTED = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "serial-getty@.service", "getty@.service",
)  # fmt: skip
EXECUTABLE = ("usr/local/sbin/run-config-disk", "usr/sbin/policy-rc.d")


class DebianGuest:
    """Paths of files made once, which takes a few minutes.

    ``kernel``, ``initramfs`` and ``image`` (a disk with nothing but the root file system) are for
    booting the kernel directly; ``disk`` is the same system on a whole disk with systemd-boot.
    """

    def __init__(self) -> None:
        _, version = newest(KERNEL)
        self.name = f"debian-12-{VERSION}-{version}"
        self.folder = cached(self.name, build)
        self.kernel = self.folder / "vmlinuz"
        self.initramfs = self.folder / "initrd.img"
        self.image = self.folder / "system.img"
        self.disk = self.folder / "disk.img"

    def grub_disk(self) -> Path:
        """The whole disk with GRUB in place of systemd-boot."""

        def make(path: Path) -> None:
            with step("making a disk that GRUB boots"):
                program = unpacked("grub-efi-amd64-bin")
                program /= "usr/lib/grub/x86_64-efi/monolithic/grubx64.efi"
                run(["cp", "--sparse=always", str(self.disk), str(path)])
                # Debian's program looks for its configuration in its vendor's folder.
                grub = {BOOT_PROGRAM: program, "EFI/debian/grub.cfg": GRUB_CONF.encode()}
                write_esp(path, {**kernel_files(self.folder), **grub})

        return cached(f"{self.name}-grub-2.img", make)


def kernel_files(folder: Path) -> dict[str, Path | bytes]:
    return {"vmlinuz": folder / "vmlinuz", "initrd": folder / "initrd.img"}


def build(target: Path) -> None:
    if os.geteuid() != 0:
        raise PackageError("making a Debian image needs root: debootstrap runs in a chroot")
    root = target.parent / "root"
    target.mkdir()
    with step("making a Debian 12 with debootstrap (a few minutes)"):
        run(
            [
                "debootstrap",
                "--variant=minbase",
                f"--include={INCLUDE}",
                "bookworm",
                str(root),
                MIRROR,
            ]
        )
        for name, content in FILES.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
            path.chmod(0o755 if name in EXECUTABLE else 0o644)
        security = MIRROR.replace("/debian", "/debian-security", 1)
        with open(root / "etc/apt/sources.list", "a") as sources:
            sources.write(f"deb {security} bookworm-security main\n")
    with step("installing its kernel and cloud-init"):
        install_packages(root)
    with step("making its disk images"):
        shutil.copy(root / "vmlinuz", target / "vmlinuz")
        shutil.copy(root / "initrd.img", target / "initrd.img")
        make_ext4(target / "system.img", root, IMAGE_BYTES, "root")
        program = unpacked("systemd-boot-efi") / "usr/lib/systemd/boot/efi/systemd-bootx64.efi"
        loader = {
            BOOT_PROGRAM: program,
            "loader/loader.conf": LOADER_CONF,
            "loader/entries/debian.conf": LOADER_ENTRY.encode(),
        }
        make_gpt(target / "disk.img", {**kernel_files(target), **loader}, root, IMAGE_BYTES)


def install_packages(root: Path) -> None:
    """In a chroot with /proc, which the kernel's scripts need."""
    for name in ("resolv.conf", "hosts"):
        if Path("/etc", name).exists():
            shutil.copy(Path("/etc", name), root / "etc" / name)
    for name in ("apt.conf.d",):
        for path in Path("/etc/apt", name).glob("*proxy*"):
            shutil.copy(path, root / "etc/apt" / name)
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    run(["mount", "-t", "proc", "proc", str(root / "proc")])
    try:
        inside = ["chroot", str(root)]
        run([*inside, "apt-get", "-q", "update"], env=env)
        install = ["apt-get", "-qy", "--no-install-recommends", "install"]
        run([*inside, *install, KERNEL, "cloud-init"], env=env)
        run([*inside, "systemctl", "enable", "config-disk.service"], env=env)
        run([*inside, "systemctl", "mask", *UNWANTED], env=env)
        run([*inside, "passwd", "-d", "root"], env=env)
        run([*inside, "apt-get", "clean"], env=env)
    finally:
        subprocess.run(["umount", str(root / "proc")], check=True)
    (root / "usr/sbin/policy-rc.d").unlink()
