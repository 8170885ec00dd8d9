"""Two instances of the system's service: what the user of one can reach of the other's."""

from __future__ import annotations

import ctypes
import errno
import grp
import os
import pwd
import socket
from collections.abc import Callable
from pathlib import Path

from tests.lab.guests.guest_run import expect
from tests.lab.scenarios.service import runs_as_one_command, tiny
from tests.lab.units import Facts, Service, wait_for
from vmm.command.unit import TASKS, memory_max

# Of asm/unistd_64.h and linux/ptrace.h.
PIDFD_GETFD = 438
PTRACE_SEIZE = 0x4206
GUEST_BYTES = 16 << 20
GROUPS = ("kvm", "vllmd")
Attempt = Callable[[], object]


def read_memory(pid: int) -> None:
    """A byte of guest RAM, or of whatever is mapped first."""
    first = Path(f"/proc/{pid}/maps").read_text().split("-")[0]
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
        file.seek(int(first, 16))
        file.read(1)


def system_call(number: int, *arguments: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    found = int(libc.syscall(number, *map(ctypes.c_long, arguments)))
    if found < 0:
        raise OSError(ctypes.get_errno(), "system call")
    return found


def seize(pid: int) -> None:
    """As a debugger does it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(PTRACE_SEIZE, pid, None, None) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")


def ask_control(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def attempts(service: Service, pid: int) -> dict[str, Attempt]:
    """What an intruder tries, by name."""
    run = Path(f"/run/vllmd/{service.name}/vllmd-hypervisor/{service.name}")
    files = {
        "image": service.folder / "system.img", "state": run / "state.json", "lock": run / "lock",
        "console": service.guest_file, "log": Path(f"/var/log/vllmd/{service.name}/vm.log"),
    }  # fmt: skip
    found: dict[str, Attempt] = {
        name: lambda p=path: p.open("rb").close() for name, path in files.items() if path.exists()
    }
    for folder in ("/run", "/var/lib", "/var/cache", "/var/log"):
        found[f"{folder}'s folder"] = lambda f=folder: os.listdir(f"{f}/vllmd/{service.name}")
    found["names of others"] = lambda: os.listdir("/run/vllmd")
    found["control socket"] = lambda: ask_control(run / "control")
    found["RAM through /proc"] = lambda: read_memory(pid)
    found["descriptors"] = lambda: os.listdir(f"/proc/{pid}/fd")
    for fd in os.listdir(f"/proc/{pid}/fd"):
        name = os.readlink(f"/proc/{pid}/fd/{fd}")
        if name.startswith(("/memfd:", "/dev/kvm", str(service.folder))) or "(deleted)" in name:
            path = f"/proc/{pid}/fd/{fd}"
            found[f"{name} by /proc"] = lambda p=path: os.close(os.open(p, os.O_RDONLY))
    found["descriptors by pidfd"] = lambda: os.close(
        system_call(PIDFD_GETFD, os.pidfd_open(pid), 0, 0)
    )
    found["ptrace"] = lambda: seize(pid)
    found["a signal"] = lambda: os.kill(pid, 0)
    return found


def error_as(user: str | None, attempt: Attempt, group: str = "") -> int:
    """What an attempt fails with as this user (None: root), in this control group: 0 when it works.

    With the unit's own groups, and outside of its sandbox, which would take more away.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        if group:
            Path(f"/sys/fs/cgroup{group}/cgroup.procs").write_text("0")
        if user is not None:
            account = pwd.getpwnam(user)
            os.setgroups([grp.getgrnam(name).gr_gid for name in GROUPS])
            os.setgid(account.pw_gid)
            os.setuid(account.pw_uid)
        attempt()
    except OSError as error:
        os._exit(error.errno or 255)
    except BaseException:
        os._exit(254)
    os._exit(0)


def two_instances() -> None:
    """Of the other's images, sockets, folders and RAM nothing can be read; root can all."""
    mine = tiny(Service("system", "mine"), LOG_FILEPATH="/var/log/vllmd/mine/vm.log")
    other = tiny(Service("system", "other"))
    mine.ctl("start", mine.unit, other.unit)
    pid = int(runs_as_one_command(mine))
    wait_for("the guest", lambda: mine.console())
    tried = attempts(mine, pid)
    expect(len(tried) > 14 and any("kvm" in name for name in tried), str(sorted(tried)))
    for name, attempt in tried.items():
        expect(error_as(None, attempt) == 0, f"root cannot: {name}, so this shows nothing")
        code = error_as("vllmd-other", attempt)
        expect(code in (errno.EACCES, errno.EPERM), f"{name}: {errno.errorcode.get(code, code)}")
    for service in (mine, other):
        code, told = service.command("status", service.name)
        expect(code == 0, told)
    told = mine.command("list")[1]
    expect("mine" in told and "other" in told, told)
    limits(mine.show())
    for service in (mine, other):
        service.end()


def limits(facts: Facts) -> None:
    """By the settings: the control group's limits, and no device but KVM."""
    group = Path("/sys/fs/cgroup") / facts.group.lstrip("/")
    most = {"memory.max": memory_max(GUEST_BYTES), "pids.max": TASKS + 3}
    for name, expected in most.items():
        found = (group / name).read_text().strip()
        expect(found == str(expected), f"{name}: {found}, not {expected}")
    for path, code in (("/dev/kvm", 0), ("/dev/vfio/vfio", errno.EPERM)):
        found = error_as(None, lambda p=path: os.open(p, os.O_RDWR), facts.group)
        expect(found == code, f"{path}: {errno.errorcode.get(found, found)}")
        expect(error_as(None, lambda p=path: os.open(p, os.O_RDWR)) == 0, f"{path} as root")
    expect(os.kill(int(facts.pid), 0) is None, "the instance ended meanwhile")
