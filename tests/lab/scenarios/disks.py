"""What a guest writes is what the host's file holds, and the config disk stays as it is."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from pathlib import Path

from tests.lab.guests.guest_run import expect
from tests.lab.scenarios.debian import facts, guest_of
from tests.lab.scenarios.lifecycle import job_guest

MIB = 1 << 20
TRACING = Path("/sys/kernel/tracing")
# Half of the data goes past the guest's page cache, half through it; then a reboot, then back.
DATA = """
half={half}
if [ ! -e /written ]; then
  dd if=/dev/urandom of=/dev/vdb bs=1M count=$half oflag=direct 2>/dev/null
  dd if=/dev/urandom of=/dev/vdb bs=1M count=$half seek=$half conv=fsync 2>/dev/null
  sync
  md5sum /dev/vdb | cut -d' ' -f1 >/written
  sync
  echo "guest: written $(cat /written)"
  systemctl reboot
  sleep 1000
fi
echo "guest: was $(cat /written)"
echo "guest: direct $(dd if=/dev/vdb bs=1M iflag=direct 2>/dev/null | md5sum | cut -d' ' -f1)"
rm /written
echo "guest: config $(cat /dev/vdc | md5sum | cut -d' ' -f1)"
echo "guest: config ro $(blockdev --getro /dev/vdc)"
dd if=/dev/zero of=/dev/vdc bs=512 count=1 oflag=direct 2>&1 && echo "guest: config was written"
systemctl poweroff
"""
# The same by a small guest, which keeps the sum behind the data of its only disk.
SMALL_DATA = """
half={half}
all=$((2 * half)); sum=$((2048 * all))
was=$(dd if=/dev/vda bs=512 skip=$sum count=1 2>/dev/null | tr -d '\\000')
if [ -z "$was" ]; then
  dd if=/dev/urandom of=/dev/vda bs=1M count=$half oflag=direct iflag=fullblock 2>/dev/null
  dd if=/dev/urandom of=/dev/vda bs=1M count=$half seek=$half conv=fsync 2>/dev/null
  was=$(dd if=/dev/vda bs=1M count=$all 2>/dev/null | md5sum | cut -d' ' -f1)
  printf %s $was | dd of=/dev/vda bs=512 seek=$sum conv=sync,fsync 2>/dev/null
  echo "guest: written $was"
  reboot -f
  sleep 1000
fi
echo "guest: was $was"
direct=$(dd if=/dev/vda bs=1M count=$all iflag=direct 2>/dev/null | md5sum | cut -d' ' -f1)
echo "guest: direct $direct"
"""
FIO = """
echo "guest: fio $(fio --name=verify --filename=/dev/vdb --rw=randwrite --bs=4k --size={size}M \\
  --numjobs=4 --offset_increment={size}M --iodepth=32 --ioengine=libaio --direct=1 \\
  --verify=crc32c --do_verify=1 --verify_fatal=1 --group_reporting >/tmp/fio 2>&1; echo $?)"
grep -E "err=|verify" /tmp/fio | head -20
dmesg --level err,warn | grep vdb | sed 's/^/guest: complaint /'
systemctl poweroff
"""


def md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def small_data_survives(kernel: str, initramfs: str, mib: int) -> None:
    """As data_survives(), without a Debian."""
    with job_guest(kernel, initramfs, SMALL_DATA.format(half=mib // 2)) as guest:
        disk = guest.folder / "system.img"
        os.truncate(disk, (mib + 1) * MIB)
        with io_uring_events() as events:
            code = guest.run(timeout=400)
            flushes = events.read_text().count("FSYNC")
        text = guest.text
        expect(code == 0, f"{code}\n{text}")
        with open(disk, "rb") as file:
            on_host = hashlib.md5(file.read(mib * MIB)).hexdigest()
        for name in ("written", "was", "direct"):
            expect(facts(text, name) == [on_host], f"{name} is not {on_host}\n{text}")
        expect(flushes > 0, "no flush of the guest reached the host's file")


def data_survives(kernel: str, initramfs: str, mib: int) -> None:
    """``mib`` of random data, direct and buffered, the same after a reboot and on the host."""
    with guest_of(
        kernel, initramfs, DATA.format(half=mib // 2), "hvc0", CPU_COUNT=1,
        MEMORY_CONFIG="size=512M",
    ) as guest:  # fmt: skip
        data = guest.folder / "data.img"
        with open(data, "wb") as file:
            file.truncate(mib * MIB)
        guest.env["VLLMD_HYPERVISOR_SYSTEM_IMAGE_FILEPATH"] += f",{data}"
        config = Path(guest.env["VLLMD_HYPERVISOR_CONFIG_IMAGE_FILEPATH"])
        before = md5(config)
        with io_uring_events() as events:
            code = guest.run(timeout=800)
            flushes = events.read_text().count("FSYNC")
        text = guest.text
        expect(code == 0, f"{code}\n{text}")
        on_host = md5(data)
        expect(facts(text, "was") == [on_host], f"{on_host}\n{text}")
        expect(facts(text, "direct") == [on_host], f"{on_host}\n{text}")
        expect(len(set(facts(text, "written"))) == 1, text)
        expect(facts(text, "config ro") == ["1"], text)
        expect("guest: config was written" not in text, text)
        expect(md5(config) == before and before in facts(text, "config"), text)
        expect(flushes > 0, "no flush of the guest reached the host's file")


class io_uring_events:
    """The kernel's own record of io_uring requests, with their operations."""

    def __enter__(self) -> Path:
        if not (TRACING / "events").exists():
            subprocess.run(["mount", "-t", "tracefs", "tracefs", str(TRACING)], check=True)
        self.switch = next(TRACING.glob("events/io_uring/io_uring_submit_*/enable"))
        (self.switch.parent / "filter").write_text("opcode == 3")  # IORING_OP_FSYNC
        self.switch.write_text("1")
        return TRACING / "trace"

    def __exit__(self, *exception: object) -> None:
        self.switch.write_text("0")
        (TRACING / "trace").write_text("")


def fio_verifies(kernel: str, initramfs: str, mib: int) -> None:
    """fio with verification: 4 jobs, 32 requests in flight each."""
    script = FIO.format(size=mib)
    with guest_of(
        kernel, initramfs, script, "hvc0", CPU_COUNT=2, MEMORY_CONFIG="size=512M"
    ) as guest:
        data = guest.folder / "data.img"
        with open(data, "wb") as file:
            file.truncate(4 * mib * MIB)
        guest.env["VLLMD_HYPERVISOR_SYSTEM_IMAGE_FILEPATH"] += f",{data}"
        code = guest.run(timeout=800)
        text = guest.text
    expect(code == 0 and facts(text, "fio") == ["0"], f"{code}\n{text}")
    expect(not facts(text, "complaint"), text)
    expect(re.search(r"err= *0", text), text)
