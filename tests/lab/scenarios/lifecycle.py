"""How instances begin and end: stop, kill, reboot, panic, two at once."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from tests.lab.guests.guest_run import COMMAND, Guest, expect
from tests.lab.guests.job_guest import write_job

SECTORS_16M = 16 << 20


def job_guest(kernel: str, initramfs: str, script: str, cmdline: str = "", **more: object) -> Guest:
    """A job guest with a fresh system disk of 16 MiB."""
    guest = Guest(
        KERNEL_FILEPATH=kernel, INITRAMFS_FILEPATH=initramfs, CPU_COUNT=1,
        MEMORY_CONFIG="size=256M,shared=on", SERIAL="tty", **more,
        CMDLINE=f"console=ttyS0 console=hvc0 quiet panic=-1 {cmdline}",
    )  # fmt: skip
    system = guest.folder / "system.img"
    with open(system, "wb") as file:
        file.truncate(SECTORS_16M)
    guest.env["VLLMD_HYPERVISOR_SYSTEM_IMAGE_FILEPATH"] = str(system)
    guest.env["VLLMD_HYPERVISOR_CONFIG_IMAGE_FILEPATH"] = str(
        write_job(guest.folder / "job.img", script)
    )
    return guest


# Counts its boots in the first sector of the system disk.
COUNT = """
n=$(dd if=/dev/vda bs=512 count=1 2>/dev/null | tr -d '\\000')
n=$((${n:-0} + 1))
echo "guest: boot $n"
printf %s $n | dd of=/dev/vda bs=512 count=1 conv=sync,fsync 2>/dev/null
"""


def runs_a_kernel(kernel: str, initramfs: str, release: str) -> None:
    """User space reached, power-off, exit 0."""
    with job_guest(kernel, initramfs, 'echo "guest: $(uname -r)"\n') as guest:
        code = guest.run()
        expect(code == 0 and f"guest: {release}" in guest.text, f"{code}\n{guest.text}")


def reboots(kernel: str, initramfs: str, how: str, times: int) -> None:
    """The same process, a fresh machine each time, the disk's content kept."""
    script = COUNT + f"[ $n -gt {times} ] || {{ reboot -f; sleep 100; }}\n"
    with job_guest(kernel, initramfs, script, f"reboot={how}") as guest:
        guest.may_triple_fault = how == "triple"
        guest.start().until("guest: boot 2")
        expect(guest.process is not None, "not started")
        pid = guest.status()["pid"]
        expect(pid == guest.process.pid, f"{pid}")
        code = guest.wait()
        last = f"guest: boot {times + 1}"
        expect(code == 0 and last in guest.text, f"{code}\n{guest.text}")
        expect(guest.status()["reboots"] == times, str(guest.status()))


def panic_reboots(kernel: str, initramfs: str) -> None:
    """panic=-1: the kernel resets the machine at once; the second boot powers off."""
    script = COUNT + "[ $n -ge 2 ] || echo c >/proc/sysrq-trigger\n"
    with job_guest(kernel, initramfs, script) as guest:
        code = guest.run()
        expect(code == 0 and "guest: boot 2" in guest.text, f"{code}\n{guest.text}")


WAIT = 'echo "guest: ready"\nwhile :; do sleep 1; done\n'


def deaf_guest_is_killed(kernel: str, initramfs: str) -> None:
    """Nothing in the guest hears the button: killed at the timeout, code 37 from both."""
    with job_guest(kernel, initramfs, WAIT, STOP_TIMEOUT_SECONDS=3) as guest:
        guest.start().until("guest: ready")
        started = time.monotonic()
        code, told = guest.verb("stop")
        expect(code == 37 and "killed" in told, f"{code} {told}")
        expect(time.monotonic() - started > 3, "killed before its time")
        expect(guest.wait(10) == 37, guest.text)
        expect(guest.status()["last_exit"]["code"] == 37, str(guest.status()))


def stop_during_boot_and_of_nothing(kernel: str, initramfs: str) -> None:
    with job_guest(kernel, initramfs, WAIT, STOP_TIMEOUT_SECONDS=2) as guest:
        code, told = guest.verb("stop")
        expect(code == 4 and "is known" in told, f"{code} {told}")
        guest.start()
        while guest.verb("status")[0] != 0:
            time.sleep(0.1)
        code, told = guest.verb("stop")
        expect(code == 37, f"{code} {told}\n{guest.text}")
        expect(guest.wait(10) == 37, guest.text)
        expect(guest.verb("stop")[0] == 0, "a second stop")
        expect(guest.verb("status")[0] == 3, "status of a stopped instance")


def second_stop_kills_at_once(kernel: str, initramfs: str) -> None:
    """Two signals: the first asks, the second ends it, long before the timeout."""
    with job_guest(kernel, initramfs, WAIT, STOP_TIMEOUT_SECONDS=300) as guest:
        guest.start().until("guest: ready")
        guest.signal(signal.SIGTERM)
        guest.until("power button pressed")
        time.sleep(1.5)
        guest.signal(signal.SIGINT)
        expect(guest.wait(20) == 37, guest.text)


def killed_and_started_again(kernel: str, initramfs: str) -> None:
    """`kill -9` leaves no lock behind; `status` tells; two starts at once are refused."""
    with job_guest(kernel, initramfs, WAIT, STOP_TIMEOUT_SECONDS=1) as guest:
        guest.start().until("guest: ready")
        expect(guest.process is not None, "not started")
        first = guest.process.pid
        code, told = guest.verb("start")
        expect(code == 39 and str(first) in told, f"{code} {told}")
        env = {**guest.env, "VLLMD_HYPERVISOR_NAME": "another"}
        other = subprocess.run(
            [COMMAND, "start"], env=env, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        expect(other.returncode == 39 and str(first) in other.stdout + other.stderr, str(other))
        guest.process.kill()
        guest.process.wait()
        state = guest.status()
        expect(state["state"] == "failed" and state["last_exit"]["code"] is None, str(state))
        guest.output.unlink()
        guest.start().until("guest: ready")
        guest.verb("stop")
        expect(guest.wait(30) == 37, guest.text)


def one_process_of_one_name(kernel: str, initramfs: str) -> None:
    """ps shows one process, named as the command, and no children."""
    with job_guest(kernel, initramfs, WAIT, STOP_TIMEOUT_SECONDS=1) as guest:
        guest.start().until("guest: ready")
        expect(guest.process is not None, "not started")
        pid = guest.process.pid
        shown = subprocess.run(
            ["ps", "-o", "comm=,args=", "-p", str(pid)], capture_output=True, text=True, check=True
        ).stdout.split()
        # The kernel keeps 15 bytes of a name.
        expect(shown[0] == "vllmd-hypervisor"[:15], str(shown))
        expect(shown[1:] == ["vllmd-hypervisor", "start"], str(shown))
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        expect(children == "", f"children: {children}")
        guest.verb("stop", "--now")
        expect(guest.wait(10) == 37, guest.text)


def log_survives_rotation_and_a_full_disk(kernel: str, initramfs: str) -> None:
    """SIGHUP opens a moved log anew; a disk that fills up does not stop the guest."""
    with job_guest(kernel, initramfs, WAIT, STOP_TIMEOUT_SECONDS=1) as guest:
        small = guest.folder / "small"
        small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], check=True)
        try:
            log = small / "logs" / "vm.log"
            guest.env["VLLMD_HYPERVISOR_LOG_FILEPATH"] = f"{log},/dev/stdout"
            guest.start().until("guest: ready")
            expect("runs as process" in log.read_text(), log.read_text())
            log.rename(small / "old")
            guest.signal(signal.SIGHUP)
            guest.until("logs reopened")
            expect("logs reopened" in log.read_text(), log.read_text())
            (small / "fill").write_bytes(b"")
            with open(small / "fill", "wb", buffering=0) as fill:
                try:
                    while fill.write(os.urandom(4096)):
                        pass
                except OSError:
                    pass
            for _ in range(40):
                guest.signal(signal.SIGHUP)
                time.sleep(0.02)
            expect(guest.status()["state"] == "running", guest.text)
            guest.verb("stop", "--now")
            expect(guest.wait(10) == 37, guest.text)
        finally:
            subprocess.run(["umount", "-l", str(small)], check=False)
