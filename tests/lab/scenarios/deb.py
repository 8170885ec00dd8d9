"""The Debian package on a host: installed, upgraded under a running VM, removed, purged."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import stat
import subprocess
from pathlib import Path

from tests.lab.guests.guest_run import expect
from tests.lab.scenarios.service import HALT
from tests.lab.units import run, wait_for
from tests.support.elf_builder import build_elf

NAME = "vllmd-hypervisor"
PROGRAM = Path(f"/usr/bin/{NAME}")
UNIT = f"{NAME}@one.service"
WANTED = Path(f"/etc/systemd/system/multi-user.target.wants/{UNIT}")
LOGROTATE = Path(f"/etc/logrotate.d/{NAME}")
STATE = Path("/var/lib/vllmd")
IMAGES = STATE / "one"
SERIAL = IMAGES / "serial"
SETTINGS = Path("/etc/vllmd/hypervisor-one.env")
LOG = Path("/var/log/vllmd/one/vm.log")


def dpkg(*words: str) -> None:
    """Without its waiting for the disk, which is memory here."""
    run("dpkg", "--force-unsafe-io", "--force-confdef", *words)


def configure() -> None:
    """An instance whose guest says one word and halts; its user is there before it."""
    run("systemctl", "start", "vllmd-prepare@one")
    IMAGES.mkdir()
    (IMAGES / "guest.elf").write_bytes(build_elf(HALT))
    values = {
        "KERNEL_FILEPATH": IMAGES / "guest.elf", "SYSTEM_IMAGE_FILEPATH": IMAGES / "system.img",
        "CONFIG_IMAGE_FILEPATH": IMAGES / "seed.img", "CPU_COUNT": 1, "MEMORY_CONFIG": "size=16M",
        "CONSOLE": "null", "SERIAL": f"file={SERIAL}", "LOG_FILEPATH": LOG,
        "STOP_TIMEOUT_SECONDS": 1,
    }  # fmt: skip
    (IMAGES / "system.img").write_bytes(bytes(1 << 20))
    for name in ("user-data", "meta-data"):
        (IMAGES / name).write_text("#cloud-config\n")
    run(NAME, "seed", *[str(IMAGES / name) for name in ("user-data", "meta-data", "seed.img")])
    for path in (IMAGES, *IMAGES.iterdir()):
        shutil.chown(path, "vllmd-one", "vllmd-one")
    lines = [f"VLLMD_HYPERVISOR_{name}={value}\n" for name, value in values.items()]
    SETTINGS.write_text("".join(lines))


def main_pid() -> str:
    return run("systemctl", "show", "--value", "--property=MainPID", UNIT).strip()


def installed() -> None:
    """What the package promises is there, and its user."""
    for line in run("dpkg-query", "--listfiles", NAME).splitlines():
        expect(os.path.lexists(line) or line == "/.", line)
    account = pwd.getpwnam("vllmd")
    expect("vllmd" in grp.getgrnam("kvm").gr_mem, str(grp.getgrnam("kvm")))
    found = STATE.stat()
    expect((found.st_uid, stat.S_IMODE(found.st_mode)) == (account.pw_uid, 0o750), str(found))
    expect(NAME in run(NAME, "--version"), "no version")
    expect(f"ExecStart={PROGRAM} start" in run("systemctl", "cat", UNIT), "no unit")


def life(package: str) -> None:
    """From the installation to the purge."""
    dpkg("--install", package)
    installed()
    # What Debian's udev does, which the lab is without.
    os.chown("/dev/kvm", 0, grp.getgrnam("kvm").gr_gid)
    os.chmod("/dev/kvm", 0o660)
    configure()
    run("systemctl", "enable", "--now", UNIT)
    wait_for("the guest", lambda: SERIAL.exists() and "up" in SERIAL.read_text())
    pid = main_pid()
    expect(Path(f"/proc/{pid}/exe").resolve() == PROGRAM, pid)
    run(NAME, "status", "one")

    LOGROTATE.write_text(LOGROTATE.read_text().replace("weekly", "daily"))
    dpkg("--install", package)
    expect(main_pid() == pid, "an upgrade stopped a VM")
    expect("daily" in LOGROTATE.read_text(), "an upgrade took the administrator's words")

    dpkg("--remove", NAME)
    expect(not Path(f"/proc/{pid}").exists(), "a VM runs on without its program")
    expect(not PROGRAM.exists(), "the program is there")
    expect(subprocess.run(["systemctl", "cat", UNIT], capture_output=True).returncode != 0, UNIT)
    for path in (LOGROTATE, SETTINGS, WANTED, LOG):
        expect(os.path.lexists(path), f"{path} was removed before the purge")

    dpkg("--purge", NAME)
    for path in (LOGROTATE, WANTED, LOG.parents[1], Path("/run/vllmd"), Path("/var/cache/vllmd")):
        expect(not os.path.lexists(path), f"{path} is there after the purge")
    for path in (SETTINGS, IMAGES / "system.img"):
        expect(path.exists(), f"{path} was its owner's")
    told = subprocess.run(["dpkg-query", "--status", NAME], capture_output=True, check=False)
    expect(told.returncode != 0, told.stdout.decode())
