"""`check` on a real host: what it finds is what `start` refuses by, and its cures cure.

The commands that it prints are run as they are.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.lab.guests.guest_run import COMMAND, Guest, expect
from tests.lab.rig.reach import open_to_all
from tests.lab.scenarios.lifecycle import WAIT, job_guest
from tests.lab.scenarios.passthrough import DEVICES, NVME, bind, facts, find, guest_with
from tests.support.speed import patience

USER, UID = "tenant", 1200
UNMADE = ("KERNEL_FILEPATH", "SYSTEM_IMAGE_FILEPATH", "CONFIG_IMAGE_FILEPATH")
# Reads the first 4 MiB of the NVMe, writes others, reads those back. The next guest of the same lab
# finds the disk as it was.
JOB = """
for try in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/nvme0n1 ] && break; sleep 1; done
echo "guest: first $(dd if=/dev/nvme0n1 bs=1M count=4 2>/dev/null | md5sum | cut -d' ' -f1)"
dd if=/dev/nvme0n1 of=/tmp/old bs=1M skip=8 count=4 2>/dev/null
dd if=/dev/urandom of=/tmp/data bs=1M count=4 2>/dev/null
dd if=/tmp/data of=/dev/nvme0n1 bs=1M seek=8 2>/dev/null; sync
echo 3 >/proc/sys/vm/drop_caches
echo "guest: wrote $(md5sum </tmp/data | cut -d' ' -f1)"
echo "guest: back $(dd if=/dev/nvme0n1 bs=1M skip=8 count=4 2>/dev/null | md5sum | cut -d' ' -f1)"
dd if=/tmp/old of=/dev/nvme0n1 bs=1M seek=8 2>/dev/null; sync
"""


def run(command: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """A line of shell; its output is shown when it fails."""
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, **more)
    expect(done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def release(bdf: str) -> None:
    """A device without a driver, as the lab comes up."""
    device = DEVICES / bdf
    if (device / "driver").exists():
        (device / "driver/unbind").write_text(bdf)
    (device / "driver_override").write_text("\n")
    expect(not (device / "driver").exists(), f"{bdf} still has a driver")


def checked(guest: Guest) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and findings."""
    code, told = guest.verb("check", "--json")
    expect(told.startswith("{"), told)
    report = json.loads(told)
    expect(report["schema_version"] == 1 and report["exit_code"] == code, f"{code} {told}")
    return code, report["findings"]


def by_level(findings: list[dict[str, Any]], level: str) -> list[dict[str, Any]]:
    return [finding for finding in findings if finding["level"] == level]


def names(findings: list[dict[str, Any]]) -> set[str]:
    return {finding["name"] for finding in findings}


def apply(problems: list[dict[str, Any]], path: str) -> None:
    """Run every cure, exactly as it is printed."""
    for finding in problems:
        expect(finding["cure"], f"no cure: {finding}")
        for command in finding["cure"]:
            print(f"# {command}")
            run(command, env={**os.environ, "PATH": path})


def says_the_same(told: str, problems: list[dict[str, Any]]) -> None:
    """What was printed has the words and the commands of these findings."""
    for finding in problems:
        for words in (finding["found"], *finding["cure"]):
            expect(words in told, f"{words!r} is not in what was printed:\n{told}")


def without_settings() -> None:
    """What is missing is told, the host is looked at all the same, and devices are offered."""
    release(find(NVME))
    guest = Guest()
    code, findings = checked(guest)
    expect(code == 2, str(code))
    told = [finding["subject"] for finding in findings if finding["name"] == "setting"]
    expect(told == [f"VLLMD_HYPERVISOR_{name}" for name in UNMADE], str(told))
    offered = [finding["subject"] for finding in findings if finding["name"] == "candidate"]
    expect(find(NVME) in offered, str(offered))
    native = [f for f in findings if f["name"] == "kvm-native"]
    expect([f["level"] for f in native] == ["ok"], str(native))


def as_root(kernel: str, initramfs: str) -> None:
    """From a device without a driver to a running guest, and what stands in a second one's way."""
    bdf = find(NVME)
    release(bdf)
    path = f"{Path(COMMAND).parent}:{os.environ['PATH']}"
    with guest_with(kernel, initramfs, WAIT, bdf, NAME="first", STOP_TIMEOUT_SECONDS=1) as guest:
        code, findings = checked(guest)
        problems = by_level(findings, "problem")
        expect(code == 38 and names(problems) == {"group-member"}, f"{code} {problems}")
        for verb in ("start", "check"):
            code, told = guest.verb(verb)
            expect(code == 38, f"{code} {told}")
            says_the_same(told, problems)
        apply(problems, path)
        code, findings = checked(guest)
        expect(code == 0 and not by_level(findings, "problem"), f"{code} {findings}")
        by_name = {finding["name"]: finding for finding in findings}
        expect("CAP_IPC_LOCK" in by_name["memlock"]["found"], str(by_name["memlock"]))
        expect(by_name["device-reset"]["level"] == "ok", str(by_name["device-reset"]))
        expect(f"{bdf} (vfio-pci)" in by_name["iommu-group"]["found"], str(by_name["iommu-group"]))
        # The lab's IOMMU has no interrupt remapping, and its administrator accepted that.
        expect(by_name["interrupt-remapping"]["level"] == "warning", str(findings))
        guest.start().until("guest: ready")
        second = dict(guest.env, VLLMD_HYPERVISOR_NAME="second")
        other = Guest()
        other.env = second
        code, findings = checked(other)
        problems = by_level(findings, "problem")
        expect(code == 39 and names(problems) == {"image-lock", "vfio-group"}, f"{code} {problems}")
        for finding in problems[:1]:
            says_the_same(other.verb("start")[1], [{**finding, "cure": []}])
            expect(finding["cure"] == ["vllmd-hypervisor stop first"], str(finding))
        # The guest ends the hard way (37): it does not hear the button.
        subprocess.run(["sh", "-c", problems[0]["cure"][0]], env={**second, "PATH": path})
        expect(guest.wait(30) == 37, guest.text)
        code, findings = checked(other)
        expect(code == 0, f"{code} {by_level(findings, 'problem')}")


def as_a_plain_user(kernel: str, initramfs: str, md5: str) -> None:
    """Refused with the cures; after these, an NVMe works in a guest of a user without rights."""
    bdf = find(NVME)
    release(bdf)
    run(f"useradd --create-home --uid {UID} {USER}; chown root:root /dev/kvm; chmod 600 /dev/kvm")
    open_to_all(kernel, initramfs)
    guest = job_guest(
        kernel, initramfs, JOB + WAIT, DEVICE_FILEPATH_LIST=bdf, LOG_FILEPATH="/dev/stderr"
    )
    guest.prefix = ["su", USER, "-s", "/bin/sh", "-c", 'exec "$0" "$@"', "--"]
    guest.env.pop("XDG_RUNTIME_DIR", None)
    run(f"chown -R {USER}: {guest.folder}")
    with guest:
        code, findings = checked(guest)
        problems = by_level(findings, "problem")
        wanted = {"kvm-node", "group-member", "vfio-node", "memlock", "instance"}
        expect(code == 38 and names(problems) == wanted, f"{code} {problems}")
        expect(all(finding["as_root"] for finding in problems), str(problems))
        code, told = guest.verb("start")
        expect(code == 38, f"{code} {told}")
        says_the_same(told, [f for f in problems if f["name"] != "instance"])
        apply(problems, os.environ["PATH"])
        code, findings = checked(guest)
        expect(code == 0 and not by_level(findings, "problem"), f"{code} {findings}")
        guest.start().until("guest: ready")
        state = guest.status()
        process = Path(f"/proc/{state['pid']}")
        expect(process.stat().st_uid == UID, "it runs as another user")
        expect("CapEff:\t0000000000000000" in (process / "status").read_text(), "it has rights")
        guest.verb("stop", "--now")
        expect(guest.wait(30) == 37, guest.text)
        seen = facts(guest.text)
        expect(seen.get("first") == md5, f"{md5}\n{guest.text}")
        expect(seen.get("wrote") == seen.get("back") and seen.get("wrote"), guest.text)
        (device,) = [found for found in state["devices"] if found.get("bdf") == bdf]
        expect(device["interrupts"]["messages_used"] == ["msix"], str(device))
    limit = Path(f"/etc/security/limits.d/vllmd-hypervisor-{USER}.conf")
    limit.unlink()
    run(f"userdel -r {USER} 2>/dev/null; chown root:root /dev/kvm; chmod 600 /dev/kvm")
    bind(bdf)


def a_udev_rule_gives_groups(udev: str) -> None:
    """The documented rule, under Debian's udev: a group that appears is the user's."""
    document = Path("docs/without-root.md").read_text().splitlines()
    (rule,) = [line.strip() for line in document if line.strip().startswith('SUBSYSTEM=="vfio"')]
    run(f"useradd --uid {UID + 1} keeper")
    file = Path("/etc/udev/rules.d/70-vfio.rules")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(rule.replace("alice", "keeper") + "\n")
    bdf = find(NVME)
    release(bdf)
    daemon = subprocess.Popen(["systemd-udevd"], executable=f"{udev}/bin/udevadm")
    try:
        deadline = time.monotonic() + patience(30)
        while not Path("/run/udev/control").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        node = Path(f"/dev/vfio/{bind(bdf)}")
        while node.stat().st_uid != UID + 1:
            expect(daemon.poll() is None, "udev ended")
            expect(time.monotonic() < deadline, f"{node}: {node.stat()} under {rule}")
            time.sleep(0.1)
    finally:
        daemon.terminate()
        daemon.wait()
        file.unlink()
        run("userdel keeper")
