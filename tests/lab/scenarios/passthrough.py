"""Real devices of the lab, given to vfio-pci and then to a guest."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

from tests.lab.guests.guest_run import Guest, expect
from tests.lab.scenarios import debian
from tests.lab.scenarios.lifecycle import COUNT, WAIT, job_guest
from tests.support.speed import patience

DEVICES = Path("/sys/bus/pci/devices")
NVME, EDU, IVSHMEM, ETHERNET = "0x010802", "0x00ff00", "0x050000", "0x020000"


def find_all(pci_class: str) -> list[str]:
    """The devices of this class, by address."""
    devices = sorted(DEVICES.iterdir())
    return [d.name for d in devices if (d / "class").read_text().strip() == pci_class]


def find(pci_class: str, number: int = 0) -> str:
    """One device of this class."""
    found = find_all(pci_class)
    if len(found) <= number:
        raise LookupError(f"the lab has {len(found)} devices of class {pci_class}")
    return found[number]


def bind(bdf: str, driver: str = "vfio-pci") -> int:
    """Give a device to a driver; its IOMMU group."""
    device = DEVICES / bdf
    if (device / "driver").exists():
        (device / "driver/unbind").write_text(bdf)
    (device / "driver_override").write_text(driver + "\n")
    Path("/sys/bus/pci/drivers_probe").write_text(bdf)
    expect((device / "driver").resolve().name == driver, f"{bdf} is not bound to {driver}")
    return int((device / "iommu_group").resolve().name)


def name_of(bdf: str, form: str) -> str:
    """A device that vfio-pci has, as a user may name it."""
    device = DEVICES / bdf
    if form == "group":
        return f"/dev/vfio/{(device / 'iommu_group').resolve().name}"
    if form == "cdev":
        (number,) = [path.name for path in (device / "vfio-dev").iterdir()]
        return f"/dev/vfio/devices/{number}"
    return {"bdf": bdf, "sysfs": str(device)}[form]


def guest_with(kernel: str, initramfs: str, script: str, devices: str, **more: object) -> Guest:
    return job_guest(kernel, initramfs, script, DEVICE_FILEPATH_LIST=devices, **more)


# Reads all of the disk, writes 8 MiB of it, reads them back; counts interrupts. The next guest of
# the same lab finds the disk as it was.
NVME_JOB = """
for try in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/nvme0n1 ] && break; sleep 1; done
echo "guest: all $(md5sum </dev/nvme0n1 | cut -d' ' -f1)"
dd if=/dev/nvme0n1 of=/tmp/old bs=1M skip=4 count=8 2>/dev/null
dd if=/dev/urandom of=/tmp/data bs=1M count=8 2>/dev/null
dd if=/tmp/data of=/dev/nvme0n1 bs=1M seek=4 2>/dev/null; sync
echo 3 >/proc/sys/vm/drop_caches
echo "guest: wrote $(md5sum </tmp/data | cut -d' ' -f1)"
echo "guest: back $(dd if=/dev/nvme0n1 bs=1M skip=4 count=8 2>/dev/null | md5sum | cut -d' ' -f1)"
dd if=/tmp/old of=/dev/nvme0n1 bs=1M seek=4 2>/dev/null; sync
echo "guest: interrupts $(awk '/nvme/ {n += $2} END {print n}' /proc/interrupts)"
"""


def facts(text: str) -> dict[str, str]:
    """The lines ``guest: NAME VALUE``; the last of each name."""
    lines = [line.split(None, 2) for line in text.splitlines() if line.startswith("guest: ")]
    return {fields[1]: fields[-1] for fields in lines}


def nvme_works(kernel: str, initramfs: str, md5: str, form: str) -> None:
    """Its whole content is right, what the guest writes is there, by MSI-X, without exits."""
    bdf = find(NVME)
    bind(bdf)
    with guest_with(kernel, initramfs, NVME_JOB, name_of(bdf, form)) as guest:
        code = guest.run(timeout=200)
        text, state = guest.text, guest.status()
    expect(code == 0, f"{code}\n{text}")
    seen = facts(text)
    expect(seen.get("all") == md5, f"{md5}\n{text}")
    expect(seen.get("wrote") == seen.get("back") and seen.get("wrote"), text)
    expect(int(seen["interrupts"]) > 50, text)
    (device,) = [found for found in state["devices"] if found.get("bdf") == bdf]
    expect(device["interrupts"]["messages_used"] == ["msix"], str(device))
    expect(device["reset"] == "done", str(device))
    expect(device["backend"] == ("iommufd" if form == "cdev" else "type1v2"), str(device))
    (bar,) = device["bars"]
    expect(bar["mapped_bytes"] == bar["size"] - 4096, f"all but the MSI-X table: {bar}")
    expect(bar["trapped_accesses"] == 0, f"accesses that cost an exit: {bar}")
    # Configuration space and the MSI-X table at set-up: no exit for an interrupt or a doorbell.
    expect(state["exits"].get("mmio", 0) < 1500, str(state["exits"]))


AGAIN = """
for try in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/nvme0n1 ] && break; sleep 1; done
echo "guest: boot-$n $(dd if=/dev/nvme0n1 bs=1M count=4 2>/dev/null | md5sum | cut -d' ' -f1)"
[ $n -ge BOOTS ] || { reboot -f; sleep 100; }
"""


def reboots_with_a_device(
    kernel: str, initramfs: str, md5: str, boots: int, form: str = "bdf"
) -> None:
    """So many machines, one after the other in one process, each with the device reset."""
    bdf = find(NVME)
    bind(bdf)
    script = COUNT + AGAIN.replace("BOOTS", str(boots))
    with guest_with(kernel, initramfs, script, name_of(bdf, form)) as guest:
        code = guest.run(timeout=280)
        text, state = guest.text, guest.status()
    expect(code == 0 and state["reboots"] == boots - 1, f"{code} {state}\n{text}")
    seen = facts(text)
    found = [seen.get(f"boot-{n}") for n in range(1, boots + 1)]
    expect(found == [md5] * boots, f"{md5}\n{text}")


def killed_and_started_again(kernel: str, initramfs: str, form: str = "bdf") -> None:
    """`kill -9` with a device attached: the next start gets it; a start meanwhile is refused."""
    bdf = find(NVME)
    bind(bdf)
    name = name_of(bdf, form)
    with guest_with(kernel, initramfs, WAIT, name, STOP_TIMEOUT_SECONDS=1) as guest:
        guest.start().until("guest: ready")
        with guest_with(kernel, initramfs, WAIT, name, NAME="second") as second:
            code = second.run(timeout=60)
            expect(code == 39 and "in use by another process" in second.text, second.text)
        expect(guest.process is not None, "not started")
        guest.process.kill()
        guest.process.wait()
        guest.output.unlink()
        guest.start().until("guest: ready")
        guest.verb("stop", "--now")
        expect(guest.wait(30) == 37, guest.text)


def two_devices_in_two_groups(kernel: str, initramfs: str) -> None:
    """Both are there, in the order given."""
    nvme, edu = find(NVME), find(EDU)
    groups = {bind(nvme), bind(edu)}
    expect(len(groups) == 2, f"the lab has them in {groups}")
    with guest_with(kernel, initramfs, SHOW_DEVICES, f"{edu},{nvme}") as guest:
        code = guest.run(timeout=120)
        text = guest.text
    expect(code == 0, f"{code}\n{text}")
    seen = facts(text)
    expect((seen.get("0000:00:05.0"), seen.get("0000:00:06.0")) == (EDU, NVME), text)


def a_device_of_the_host_is_refused(kernel: str, initramfs: str) -> None:
    """The message names the device, its driver and the cure; nothing is left behind."""
    held = next(d for d in sorted(DEVICES.iterdir()) if (d / "driver").exists())
    driver = (held / "driver").resolve().name
    with guest_with(kernel, initramfs, WAIT, held.name) as guest:
        code, told = guest.verb("start")
    expect(code == 38, f"{code} {told}")
    expect(held.name in told and f"driver {driver}" in told and "drivers_probe" in told, told)


# What is written goes to the disk's first part, and is read again past the page cache; fio writes,
# and verifies what it wrote, behind it.
WRITES_JOB = """
modprobe nvme
for try in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/nvme0n1 ] && break; sleep 1; done
dd if=/dev/urandom bs=1M count={mib} iflag=fullblock 2>/dev/null |
  tee /dev/nvme0n1 | md5sum >/tmp/md5
sync
echo "guest: wrote $(cut -d' ' -f1 </tmp/md5)"
dd if=/dev/nvme0n1 bs=1M count={mib} iflag=direct 2>/dev/null | md5sum >/tmp/md5
echo "guest: back $(cut -d' ' -f1 </tmp/md5)"
fio --name=verify --filename=/dev/nvme0n1 --offset={mib}M --size={fio}M --rw=randwrite --bs=4k \\
  --iodepth=32 --ioengine=libaio --direct=1 --verify=crc32c --do_verify=1 --verify_fatal=1 \\
  >/tmp/fio 2>&1
echo "guest: fio $?"
echo "guest: interrupts $(awk '/nvme/ {{n += $2}} END {{print n}}' /proc/interrupts)"
systemctl poweroff
"""


SMALL_WRITES_JOB = """
for try in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/nvme0n1 ] && break; sleep 1; done
dd if=/dev/urandom of=/tmp/data bs=1M count=MIB 2>/dev/null
dd if=/tmp/data of=/dev/nvme0n1 bs=1M 2>/dev/null; sync
echo "guest: wrote $(md5sum </tmp/data | cut -d' ' -f1)"
"""


def a_small_guest_writes(kernel: str, initramfs: str, mib: int) -> None:
    """A second NVMe, from its first byte; what was written is printed last, by its MD5."""
    bdf = find(NVME, 1)
    bind(bdf)
    with guest_with(kernel, initramfs, SMALL_WRITES_JOB.replace("MIB", str(mib)), bdf) as guest:
        code = guest.run(timeout=200)
        text = guest.text
    wrote = facts(text).get("wrote", "")
    expect(code == 0 and len(wrote) == 32, f"{code}\n{text}")
    print(wrote)


def writes_reach_the_host_s_file(kernel: str, initramfs: str, mib: int) -> None:
    """A whole Debian writes a second NVMe; what it wrote is printed last, by its MD5."""
    bdf = find(NVME, 1)
    bind(bdf)
    with debian.guest_of(
        kernel, initramfs, WRITES_JOB.format(mib=mib, fio=mib // 4), "ttyS0", CPU_COUNT=1,
        MEMORY_CONFIG="size=1G", DEVICE_FILEPATH_LIST=bdf,
    ) as guest:  # fmt: skip
        code = guest.run(timeout=800)
        text, state = guest.text, guest.status()
    expect(code == 0, f"{code}\n{text}")
    (wrote,) = debian.facts(text, "wrote")
    expect(len(wrote) == 32 and debian.facts(text, "back") == [wrote], text)
    expect(debian.facts(text, "fio") == ["0"], text)
    (device,) = [found for found in state["devices"] if found.get("bdf") == bdf]
    interrupts = int(debian.facts(text, "interrupts")[0])
    expect(interrupts > 1000, text)
    (bar,) = device["bars"]
    expect(device["interrupts"]["messages_used"] == ["msix"], str(device))
    expect(bar["trapped_accesses"] == 0, str(bar))
    print(wrote)


# The address comes from the network's DHCP server, the file from its TFTP server.
NETWORK_JOB = """
cat >/tmp/address <<'END'
#!/bin/sh
[ "$1" = bound ] && ip addr add $ip/24 dev $interface && echo "guest: address $ip"
END
chmod +x /tmp/address
ip link set eth0 up
echo "guest: driver $(basename $(readlink /sys/class/net/eth0/device/driver))"
udhcpc -i eth0 -n -q -t 10 -s /tmp/address
tftp -g -b 1428 -r NAME -l /tmp/file 10.0.2.2
echo "guest: fetched $(md5sum </tmp/file | cut -d' ' -f1)"
rom=$(readlink -f /sys/class/net/eth0/device)/rom
echo 1 >$rom
echo "guest: rom $(dd if=$rom bs=2 count=1 2>/dev/null | hexdump -e '1/2 "%04x"')"
echo "guest: interrupts $(awk '/eth0/ {n += $2} END {print n}' /proc/interrupts)"
"""


def a_network_card(kernel: str, initramfs: str, file: str, md5: str) -> None:
    """It gets an address and fetches a file; ports and expansion ROM are there, too."""
    bdf = find(ETHERNET)
    bind(bdf)
    with guest_with(kernel, initramfs, NETWORK_JOB.replace("NAME", file), bdf) as guest:
        code = guest.run(timeout=200)
        text, state = guest.text, guest.status()
    expect(code == 0, f"{code}\n{text}")
    seen = facts(text)
    expect((seen.get("driver"), seen.get("fetched")) == ("e1000e", md5), f"{md5}\n{text}")
    expect(seen["address"].startswith("10.0.2."), text)
    expect(int(seen["interrupts"]) > 100, text)
    (device,) = [found for found in state["devices"] if found.get("bdf") == bdf]
    kinds = {bar["kind"] for bar in device["bars"]}
    expect({"ports", "32-bit memory", "expansion ROM"} <= kinds, str(device))
    expect(seen.get("rom") == "aa55", text)


SHOW_DEVICES = 'for d in /sys/bus/pci/devices/*; do echo "guest: ${d##*/} $(cat $d/class)"; done\n'


def two_devices_in_one_group(kernel: str, initramfs: str, modules: str) -> None:
    """By the group or one by one; while the host has one of them, neither."""
    memory, card = find_all(IVSHMEM)[-1], find_all(ETHERNET)[-1]
    group = {bind(memory), bind(card)}
    expect(len(group) == 1, f"the lab has them in {group}")
    for devices in (f"/dev/vfio/{min(group)}", f"{memory},{card}"):
        with guest_with(kernel, initramfs, SHOW_DEVICES, devices) as guest:
            code = guest.run(timeout=120)
            text = guest.text
        seen = facts(text)
        found = (seen.get("0000:00:05.0"), seen.get("0000:00:06.0"))
        expect(code == 0 and found == (IVSHMEM, ETHERNET), f"{code}\n{text}")
    subprocess.run(["modprobe", "-d", modules, "e1000"], check=True)
    bind(card, "e1000")
    for devices in (f"/dev/vfio/{min(group)}", memory):
        with guest_with(kernel, initramfs, WAIT, devices) as guest:
            code, told = guest.verb("start")
        expect(code == 38 and f"{card} of IOMMU group" in told, f"{code} {told}")
        expect("the host's driver e1000" in told and "driver_override" in told, told)
    bind(card)


def a_device_that_the_host_takes_back(kernel: str, initramfs: str) -> None:
    """It is removed while a guest has it: the guest is shut down, then the device is gone."""
    bdf = find(EDU)
    bind(bdf)
    with guest_with(kernel, initramfs, WAIT, bdf, STOP_TIMEOUT_SECONDS=3) as guest:
        guest.start().until("guest: ready")
        removing = threading.Thread(target=(DEVICES / bdf / "remove").write_text, args=("1",))
        removing.start()
        code = guest.wait(60)
        removing.join(patience(60))
        text = guest.text
    gone = not (DEVICES / bdf).exists()
    Path("/sys/bus/pci/rescan").write_text("1")
    expect(gone and (DEVICES / bdf).exists(), f"removed: {gone}\n{text}")
    expect(f"the host wants the device {bdf} back" in text, text)
    # This guest does not hear the power button.
    expect(code == 37, f"{code}\n{text}")
    bind(bdf)
    with guest_with(kernel, initramfs, SHOW_DEVICES, bdf) as guest:
        expect(guest.run(timeout=120) == 0, guest.text)


# Writes and reads a word at many places of a large BAR, by its physical address.
LARGE_BAR = """
for d in /sys/bus/pci/devices/*; do
  [ "$(cat $d/vendor) $(cat $d/device)" = "0x1af4 0x1110" ] || continue
  echo 1 >$d/enable
  set -- $(sed -n 3p $d/resource)
  echo "guest: size $(($2 - $1 + 1))"
  n=0; bad=0
  while [ $n -lt 64 ]; do
    devmem $(($1 + n * STEP)) 32 $((n + 1000)) || bad=1
    n=$((n + 1))
  done
  n=0
  while [ $n -lt 64 ]; do
    [ $(($(devmem $(($1 + n * STEP)) 32))) = $((n + 1000)) ] || bad=1
    n=$((n + 1))
  done
  echo "guest: bad $bad"
done
"""


def a_large_bar(kernel: str, initramfs: str, size: int) -> None:
    """All of it is mapped: no access of the guest's is an exit."""
    bdf = find(IVSHMEM)
    bind(bdf)
    script = LARGE_BAR.replace("STEP", str(size // 64))
    with guest_with(kernel, initramfs, script, bdf) as guest:
        code = guest.run(timeout=120)
        text, state = guest.text, guest.status()
    expect(code == 0, f"{code}\n{text}")
    expect(facts(text).get("size") == str(size), text)
    expect(facts(text).get("bad") == "0", text)
    (device,) = [found for found in state["devices"] if found.get("bdf") == bdf]
    bar = next(bar for bar in device["bars"] if bar["size"] == size)
    expect(bar["mapped_bytes"] == size and bar["trapped_accesses"] == 0, str(bar))
