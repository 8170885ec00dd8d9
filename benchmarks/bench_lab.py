"""Linux and Debian boots, and fio in a guest, side by side in one lab."""

from __future__ import annotations

import json
import shutil

from tests.lab.guests.debian import DebianGuest
from tests.lab.guests.firmware import NAMES, find_firmware
from tests.lab.guests.job_guest import JobGuest
from tests.lab.rig.lab import Lab, LabError
from tests.lab.rig.progress import say

INSIDE = "benchmarks.inside_lab"
ATTEMPTS = 3


def collect(
    lab_options: dict[str, object], calls: list[dict[str, object]]
) -> list[dict[str, float]]:
    """Results of the calls, in order; a lab that the emulator lost is made anew."""
    found: list[dict[str, float]] = []
    lab: Lab | None = None
    failures = 0
    while len(found) < len(calls):
        try:
            lab = lab or Lab(**lab_options)  # type: ignore[arg-type]
            text = lab.call(f"{INSIDE}:run", timeout=900, **calls[len(found)])
            found.append(json.loads(text.strip().splitlines()[-1]))
            say(f"    {calls[len(found) - 1]['vmm']}: {found[-1]}")
        except LabError as error:
            failures += 1
            if failures > ATTEMPTS * 3:
                raise
            say(f"lab: {error}")
            if lab is not None:
                lab.close()
            lab = None
    if lab is not None:
        lab.close()
    return found


def main(peers: dict[str, str], lab_rounds: int, only: str = "") -> dict[str, object]:
    job, debian = JobGuest(), DebianGuest()
    vmms = {"vllmd-hypervisor": "", "QEMU microvm": shutil.which("qemu-system-x86_64") or ""}
    if "cloud-hypervisor" in peers:
        vmms["Cloud Hypervisor"] = peers["cloud-hypervisor"]
    results: dict[str, object] = {}
    linux = {"kernel": str(job.image), "initramfs": str(job.initramfs)}
    system = {"kernel": str(debian.kernel), "initramfs": str(debian.initramfs)}
    questions = [
        ("Linux to user space, s", "linux", linux, []),
        ("Debian to multi-user, s", "debian", system, [debian.image]),
        ("fio in Debian", "fio", system, [debian.image]),
    ]
    for firmware in NAMES:
        path = find_firmware(firmware)
        if path is not None:
            title = f"{firmware}: a whole disk to multi-user, s"
            questions.append((title, firmware, {"kernel": str(path)}, [debian.disk]))
    for title, what, files, drives in questions:
        if only and what != only:
            continue
        rounds = 1 if what == "fio" else lab_rounds
        calls = [
            {"what": what, "vmm": name, "path": path, **files}
            for _ in range(rounds)
            for name, path in vmms.items()
            # QEMU's microvm is none of the machines that these firmwares know.
            if what not in NAMES or "qemu" not in path
        ]
        rows = collect({"drives": drives}, calls)
        table: dict[str, list[dict[str, float]]] = {}
        for call, row in zip(calls, rows, strict=True):
            table.setdefault(str(call["vmm"]), []).append(row)
        results[what] = show(title, table)
    return results


def show(title: str, table: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Best of the rounds by VMM, with the ratio to QEMU (else Cloud Hypervisor)."""
    best = {
        name: {key: (min if key == "seconds" else max)(row[key] for row in rows) for key in rows[0]}
        for name, rows in table.items()
    }
    print(f"\n{title} (best of {len(next(iter(table.values())))})")
    for name, row in best.items():
        base = best.get("QEMU microvm", best.get("Cloud Hypervisor", row))
        cells = "".join(f"  {key} {row[key]:10.2f} ({row[key] / base[key]:.2f}x)" for key in row)
        print(f"{name:20}{cells}")
    return best
