"""A Linux guest whose disk, random number generator and PCI device are Python classes."""

from __future__ import annotations

import hashlib
import re
import struct
import tempfile
from pathlib import Path

import vmm
from examples.pci_device import Vmci
from examples.virtio_in_30_lines import FunctionDisk, content
from examples.virtio_rng import CountingRng
from tests.lab.guests.guest_run import WORK, expect
from tests.lab.guests.job_guest import write_job
from tests.support.speed import patience
from vmm.layout import PCI_CONFIG_PORT, PCI_CONFIG_SIZE

SECTORS = 2048
MIB = 1 << 20
JOB = """
echo "guest: serial $(cat /sys/block/vdc/serial)"
echo "guest: sectors $(cat /sys/block/vdc/size) read only $(cat /sys/block/vdc/ro)"
echo "guest: md5 $(md5sum </dev/vdc)"
echo "guest: errors $(dd if=/dev/zero of=/dev/vdc bs=512 count=1 2>&1 | head -n 1)"
echo virtio_rng.1 >/sys/class/misc/hw_random/rng_current
echo "guest: random $(dd if=/dev/hwrng bs=64 count=1 2>/dev/null | od -An -v -tx1 | tr -d ' \\n')"
for d in /sys/bus/pci/drivers/vmw_vmci/0000*; do
  echo "guest: bound $(cat $d/vendor) $(cat $d/device) $(cat $d/class)"
  echo "guest: msi $(ls $d/msi_irqs | wc -l)"
done
grep vmw_vmci /proc/interrupts | sed 's/^/guest: irq /'
"""


def linux_binds(kernel: str, initramfs: str) -> str:
    """One boot; every driver is the kernel's own."""
    vmci, config = Vmci(), []
    with tempfile.TemporaryDirectory(dir=WORK) as name:
        folder = Path(name)
        (folder / "system.img").write_bytes(bytes(MIB))
        with vmm.Guest(
            kernel=kernel, initramfs=initramfs, memory="256M",
            system_image=folder / "system.img",
            config_image=write_job(folder / "job.img", JOB),
            cmdline="console=ttyS0 console=hvc0 quiet panic=-1",
            devices=[FunctionDisk, CountingRng, vmci],
        ) as guest:  # fmt: skip
            hook = guest.on_port(PCI_CONFIG_PORT, PCI_CONFIG_SIZE, mode="watch")

            @hook
            def watch(cpu, port, value, size):
                config.append((cpu.regs.rip, port, value))

            stop = guest.run(seconds=patience(400))
            text = guest.console.text.replace("\r", "")
            expect(stop.kind == "ended", f"{stop}\n{text}\n{guest.serial.text}\n{vmci.trail}")
            expect(hook.hits == len(config) > 0, f"{hook}")
            expect(all(rip >> 63 for rip, _, _ in config), f"{config[:5]}")
    print(text)
    _disk(text)
    _random(text)
    _pci(text, vmci)
    return f"{len(config)} accesses of configuration space by ports\n" + "\n".join(vmci.trail[:20])


def said(text: str, word: str) -> str:
    found = re.search(rf"guest: {word} (.*)", text)
    expect(found is not None, f"no {word!r} in {text}")
    assert found is not None
    return found[1].strip()


def _disk(text: str) -> None:
    data = b"".join(content(sector) for sector in range(SECTORS))
    expect(said(text, "serial") == "a python function", text)
    expect(said(text, "sectors") == f"{SECTORS} read only 1", text)
    expect(said(text, "md5").split()[0] == hashlib.md5(data).hexdigest(), text)


def _random(text: str) -> None:
    numbers = struct.unpack("<8Q", bytes.fromhex(said(text, "random")))
    expect(list(numbers) == list(range(numbers[0], numbers[0] + 8)), f"{numbers}")


def _pci(text: str, vmci: Vmci) -> None:
    expect(said(text, "bound") == "0x15ad 0x0740 0x088000", text)
    expect(int(said(text, "msi")) == vmci.msix_vectors, text)
    expect("write IMR 0x1" in vmci.trail, f"{vmci.trail}")
    counts = re.findall(r"guest: irq +\d+: +(\d+).*MSI.*vmw_vmci", text)
    expect(bool(counts) and int(counts[0]) == 1, text)
