"""An NVMe that has only its level-triggered line, read under ours and under QEMU's vfio-pci."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from benchmarks import inside_lab
from tests.lab.guests.guest_run import expect
from tests.lab.guests.job_guest import write_job
from tests.lab.scenarios.passthrough import NVME, bind, facts, find, guest_with

READS = 8000
# Two reads that end together have one interrupt.
ENOUGH_OF_ALL = 0.7
# Without messages from its next driver on (msi_bus of Documentation/ABI/testing/sysfs-bus-pci).
# One read in flight at a time, and two, so that an interrupt comes while another is handled.
JOB = f"""
for try in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/nvme0n1 ] && break; sleep 1; done
pci=$(basename $(readlink -f /sys/block/nvme0n1/device/device))
echo $pci >/sys/bus/pci/drivers/nvme/unbind
echo 0 >/sys/bus/pci/devices/$pci/msi_bus
echo $pci >/sys/bus/pci/drivers/nvme/bind
for try in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/nvme0n1 ] && break; sleep 1; done
started=$(cut -d' ' -f1 /proc/uptime)
dd if=/dev/nvme0n1 of=/dev/null bs=512 count={READS // 2} iflag=direct 2>/dev/null
dd if=/dev/nvme0n1 of=/dev/null bs=512 count={READS // 4} iflag=direct 2>/dev/null &
dd if=/dev/nvme0n1 of=/dev/null bs=512 count={READS // 4} skip=4096 iflag=direct 2>/dev/null
wait
echo "guest: from $started"
echo "guest: to $(cut -d' ' -f1 /proc/uptime)"
echo "guest: interrupts $(awk '/nvme/ {{n += $2}} END {{print n}}' /proc/interrupts)"
grep nvme /proc/interrupts | sed 's/^/guest: kind /'
"""


def beside_qemu(kernel: str, initramfs: str, rounds: int) -> None:
    """So many rounds of each; in each all reads end, and the line told of nearly all of them."""
    bdf = find(NVME)
    bind(bdf)
    for number in range(1, rounds + 1):
        for name, run in (("ours", _ours), ("qemu", _qemu)):
            text = run(kernel, initramfs, bdf)
            seen = facts(text)
            expect("interrupts" in seen, f"{name}, round {number}: it stood still\n{text}")
            expect("IO-APIC" in text, f"{name}: not by the line\n{text}")
            count = int(seen["interrupts"])
            expect(count >= READS * ENOUGH_OF_ALL, f"{name}: {count} of {READS}\n{text}")
            seconds = float(seen["to"]) - float(seen["from"])
            print(f"round {number} {name}: {count} interrupts in {seconds:.1f} s")


def _ours(kernel: str, initramfs: str, bdf: str) -> str:
    with guest_with(kernel, initramfs, JOB, bdf) as guest:
        code = guest.run(timeout=200)
        expect(code == 0, f"{code}\n{guest.text}")
        return guest.text


def _qemu(kernel: str, initramfs: str, bdf: str) -> str:
    path = shutil.which("qemu-system-x86_64")
    if path is None:
        raise AssertionError("there is no qemu-system-x86_64")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        disks = [f"{name}/system.img", f"{name}/job.img"]
        Path(disks[0]).write_bytes(bytes(1 << 20))
        write_job(Path(disks[1]), JOB)
        arguments, _ = inside_lab.qemu(
            path, kernel, initramfs, "console=hvc0 quiet panic=-1", disks
        )
        arguments += ["-device", f"vfio-pci,host={bdf}"]
        return inside_lab.watch(arguments, {}, "guest: job done")[1]
