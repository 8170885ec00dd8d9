"""Inside the lab with systemd: the packaged units installed, and one instance as a service."""

from __future__ import annotations

import grp
import json
import os
import pwd
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.lab.guests.guest_run import COMMAND, expect
from tests.lab.guests.job_guest import write_job
from tests.lab.rig.flaw import FlawWatch, LabFlaw, StillWatch, lost_for_good, waits_for_itself
from tests.lab.rig.vcpus import Vcpus
from tests.support.speed import patience

ROOT = Path(__file__).resolve().parents[2]
SYSTEMD = ROOT / "packaging/systemd"
UNITS = Path("/etc/systemd")
INSTALLED = Path("/usr/local/bin/vllmd-hypervisor")
USER = "alice"
IMAGES = Path("/var/lib/vllmd")
SYSTEM_IMAGE_BYTES = 1 << 20
# A Python environment in a home or in /tmp, which the sandbox hides. A single file needs none.
DROP_IN = f"""[Service]
ProtectHome=tmpfs
BindReadOnlyPaths={ROOT} {sys.base_prefix}
"""
# The unit that the customer has had all along.
SIMPLE_UNIT = f"""[Unit]
Description=Inference VM %i

[Service]
Type=simple
EnvironmentFile=%h/.config/vllmd/hypervisor-%i.env
ExecStart=vllmd-hypervisor start
ExecStop=vllmd-hypervisor stop
Restart=on-failure
TimeoutStopSec={patience(30):g}
Slice=vllmd.slice
"""


def run(*command: str, check: bool = True) -> str:
    """Output of a command; AssertionError with it when it fails."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    expect(done.returncode == 0 or not check, f"{command}: {done.returncode}\n{done.stdout}")
    return done.stdout


def install() -> None:
    """As an administrator does it; once for each lab."""
    if INSTALLED.is_symlink():
        return
    Path("/etc/sysusers.d").mkdir(exist_ok=True)
    shutil.copy(SYSTEMD / "vllmd.sysusers", "/etc/sysusers.d/vllmd.conf")
    run("systemd-sysusers", "/etc/sysusers.d/vllmd.conf")
    # What Debian's udev does, which the lab is without.
    os.chown("/dev/kvm", 0, grp.getgrnam("kvm").gr_gid)
    os.chmod("/dev/kvm", 0o660)
    run("useradd", "--create-home", "--groups", "kvm", USER)
    for kind in ("user", "system"):
        shutil.copy(SYSTEMD / "vllmd.slice", UNITS / kind)
        shutil.copy(SYSTEMD / kind / "vllmd-hypervisor@.service", UNITS / kind)
    for name in ("bind", "prepare"):
        shutil.copy(SYSTEMD / f"system/vllmd-{name}@.service", UNITS / "system")
    (UNITS / "user/simple@.service").write_text(SIMPLE_UNIT)
    drop_in("system", "vllmd-hypervisor@", "lab", DROP_IN)
    INSTALLED.symlink_to(COMMAND)
    run("systemctl", "daemon-reload")
    run("loginctl", "enable-linger", USER)
    wait_for("the user's manager", lambda: user_socket().exists())


def drop_in(kind: str, name: str, title: str, text: str) -> None:
    """A drop-in for a unit; a reload of the manager makes it known."""
    folder = UNITS / kind / f"{name}.service.d"
    folder.mkdir(exist_ok=True)
    (folder / f"{title}.conf").write_text(text)


def user_socket() -> Path:
    return Path(f"/run/user/{pwd.getpwnam(USER).pw_uid}/systemd/private")


def wait_for(
    what: str,
    condition: Callable[[], object],
    seconds: float = 60,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Until it is true; AssertionError after ``seconds``. ``check`` raises what ends it before.

    Asking the manager takes longer than waiting: most of the only processor is the guest's.
    """
    deadline = time.monotonic() + patience(seconds)
    watch = FlawWatch()
    while True:
        asked = time.monotonic()
        if condition():
            return
        took = time.monotonic() - asked
        watch.check()
        check()
        expect(time.monotonic() < deadline, f"no {what} within {patience(seconds):g} s")
        time.sleep(max(0.1, 2 * took))


def is_kernels(pid: str) -> bool:
    """PF_KTHREAD of linux/sched.h among the flags in /proc/PID/stat (proc(5))."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return bool(int(stat.rpartition(")")[2].split()[6]) & 0x200000)


PROPERTIES = (
    "ActiveState", "Result", "MainPID", "ExecMainStatus", "NRestarts", "ControlGroup",
)  # fmt: skip


class Facts(NamedTuple):
    """What the manager knows of a unit."""

    state: str
    result: str
    pid: str
    exit_code: str
    restarts: str
    group: str

    def processes(self) -> list[str]:
        """Command lines of everything in the unit's control group."""
        group = Path("/sys/fs/cgroup") / self.group.lstrip("/")
        pids = (group / "cgroup.procs").read_text().split()
        # KVM has a kernel thread in its user's group, which systemctl does not show either.
        lines = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids if not is_kernels(pid)]
        return [line.rstrip(b"\0").replace(b"\0", b" ").decode() for line in lines]


class Service:
    """One instance under the system's manager ("system") or under a user's ("user")."""

    def __init__(self, kind: str, name: str, unit: str = "vllmd-hypervisor") -> None:
        install()
        self.kind = kind
        self.name = name
        self.unit = f"{unit}@{name}.service"
        if kind == "system":
            run("systemctl", "start", f"vllmd-prepare@{name}")
        account = pwd.getpwnam(USER if kind == "user" else f"vllmd-{name}")
        self.ids = (account.pw_uid, account.pw_gid)
        home = Path(account.pw_dir) if kind == "user" else IMAGES
        self.folder = home / name
        self.env_file = Path(f"/etc/vllmd/hypervisor-{name}.env")
        if kind == "user":
            self.env_file = home / f".config/vllmd/hypervisor-{name}.env"
        self.guest_file = self.folder / "console"
        # Whether its guest is a kernel of one processor; a tiny guest may do what kernels never do.
        self._kernel = False
        self._vcpus = Vcpus(lambda: self.command("status", "--json", name)[1])

    def configure(self, kernel: str, job: str = "", **settings: object) -> Service:
        """Copies the kernel, makes images, writes the environment file."""
        for folder in (self.folder, self.env_file.parent):
            folder.mkdir(parents=True, exist_ok=True)
        values: dict[str, object] = {
            "KERNEL_FILEPATH": self._copy(kernel),
            "SYSTEM_IMAGE_FILEPATH": self.folder / "system.img",
            "CONFIG_IMAGE_FILEPATH": write_job(self.folder / "job.img", job or "#"),
            "CPU_COUNT": 1,
            "MEMORY_CONFIG": "size=128M",
            "CONSOLE": f"file={self.guest_file}",
            **settings,
        }
        (self.folder / "system.img").write_bytes(bytes(SYSTEM_IMAGE_BYTES))
        self._kernel = "INITRAMFS_FILEPATH" in values
        if self._kernel:
            values["INITRAMFS_FILEPATH"] = self._copy(str(values["INITRAMFS_FILEPATH"]))
        lines = [f"VLLMD_HYPERVISOR_{name}={value}" for name, value in values.items() if value]
        self.env_file.write_text("\n".join(lines) + "\n")
        run("chown", "-R", f"{self.ids[0]}:{self.ids[1]}", str(self.folder))
        if self.kind == "user":
            run("chown", "-R", f"{self.ids[0]}", str(self.env_file.parents[1]))
        return self

    def _copy(self, path: str) -> Path:
        kept = self.folder.parent / Path(path).name
        if not kept.exists():
            shutil.copy(path, kept)
            kept.chmod(0o644)
        return kept

    def ctl(self, *arguments: str, check: bool = True) -> str:
        """systemctl of this instance's manager."""
        return run(*self._ctl(*arguments), check=check)

    def _ctl(self, *arguments: str) -> list[str]:
        return [*self._as_user(), "systemctl", *self._user_flag(), *arguments]

    def command(self, *arguments: str) -> tuple[int, str]:
        """`vllmd-hypervisor` as its owner (as root for the system's): (exit code, output)."""
        done = subprocess.run(
            [*self._as_user(), str(INSTALLED), *arguments], stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout

    def _as_user(self) -> list[str]:
        if self.kind == "system":
            return []
        runtime = f"XDG_RUNTIME_DIR=/run/user/{self.ids[0]}"
        return ["setpriv", "--reuid", USER, "--regid", USER, "--init-groups", "env", runtime]

    def _user_flag(self) -> list[str]:
        return ["--user"] if self.kind == "user" else []

    def start(self) -> Service:
        self.ctl("start", self.unit)
        return self

    def show(self) -> Facts:
        """Its state, in one call: each costs half a second of an emulated processor."""
        text = self.ctl("show", "--property", ",".join(PROPERTIES), self.unit)
        values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        return Facts(*[values[name] for name in PROPERTIES])

    def wait_for(self, what: str, condition: Callable[[Facts], bool], seconds: float = 60) -> Facts:
        """The first state that meets the condition."""
        seen: list[Facts] = []

        def met() -> bool:
            seen.append(self.show())
            return condition(seen[-1])

        self.patiently(f"{what} of {self.unit}", met, seconds)
        return seen[-1]

    def restart(self) -> float:
        """By its manager; the seconds that this took."""
        started = time.monotonic()
        with subprocess.Popen(self._ctl("restart", self.unit)) as manager:
            self.patiently("restart", lambda: manager.poll() is not None)
        expect(manager.returncode == 0, self.told())
        return time.monotonic() - started

    def reports(self) -> list[str]:
        """Where its vCPUs are now."""
        return self._vcpus.reports(self.show().pid)

    def patiently(self, what: str, condition: Callable[[], object], seconds: float = 60) -> None:
        """wait_for(), with all that is known of the guest when it takes too long.

        LabFlaw when the emulator lost it.
        """
        still = StillWatch(self.console, self.reports if self._kernel else list)
        try:
            wait_for(what, condition, seconds, still.check)
        except AssertionError as error:
            words = "\n".join([one["MESSAGE"] for one in self.journal() if "MESSAGE" in one])
            known = f"{self.console()}\n{self.told()}\n{words}"
            reason = lost_for_good(known) or waits_for_itself(known)
            if self._kernel and reason:
                print(known)
                raise LabFlaw(reason) from error
            raise AssertionError("\n".join([str(error), known, *self.reports()])) from error

    def told(self) -> str:
        """`systemctl status`, whatever the state."""
        return self.ctl("status", "--full", self.unit, check=False)

    def journal(self) -> list[dict[str, str]]:
        """Records that journald attributes to the unit, the manager's own left out."""
        run("journalctl", "--sync")
        field = "_SYSTEMD_USER_UNIT" if self.kind == "user" else "_SYSTEMD_UNIT"
        text = run("journalctl", "--output=json", "--no-pager", f"{field}={self.unit}")
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def managers_words(self) -> str:
        """What the manager itself said about the unit."""
        run("journalctl", "--sync")
        field = "USER_UNIT" if self.kind == "user" else "UNIT"
        return run("journalctl", "--no-pager", "--output=cat", f"{field}={self.unit}")

    def console(self) -> str:
        """What the guest wrote."""
        if not self.guest_file.exists():
            return ""
        return self.guest_file.read_text(errors="replace").replace("\r", "")

    def until(self, words: str, seconds: float = 120) -> None:
        """Wait for ``words`` on the guest's console."""
        self.patiently(words, lambda: words in self.console(), seconds)

    def end(self) -> None:
        """Whatever it is doing; for the end of a scenario."""
        self.ctl("kill", "--signal=KILL", self.unit, check=False)
        self.ctl("stop", self.unit, check=False)
