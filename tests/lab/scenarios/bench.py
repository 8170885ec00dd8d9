"""vllmd-hypervisor-bench on a real KVM: a kernel's boot in phases, exits of debugfs, the timer."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

from tests.lab.guests.guest_run import expect
from tests.support import binary
from tests.support.speed import patience
from vmm.bench import cli, procfs, results

PREFIX = "VLLMD_HYPERVISOR_"
SETTINGS = {
    "KERNEL_FILEPATH": "{kernel}", "INITRAMFS_FILEPATH": "{initramfs}", "CMDLINE": "{cmdline}",
    "SYSTEM_IMAGE_FILEPATH": "{folder}/a.img", "CONFIG_IMAGE_FILEPATH": "{folder}/b.img",
    "CPU_COUNT": "{cpus}", "MEMORY_CONFIG": "size={memory}M,shared=on", "SERIAL": "tty",
    "CONSOLE": "null", "LOG_FILEPATH": "{folder}/log",
}  # fmt: skip
# `start --timing` tells its own phases on stderr.
TIMING = {"pattern": r"^vllmd-hypervisor: (?P<name>.+?)\s+(?P<time>[\d.]+) ms,", "unit": "ms"}


def definitions(folder: Path, kernel: str, initramfs: str) -> Path:
    """Of ours alone, each asked once."""
    ours = {
        "name": "ours", "command": [binary.command(), "start", "--timing"], "timing": TIMING,
        "env": {PREFIX + name: text for name, text in SETTINGS.items()}
        | {"XDG_RUNTIME_DIR": "{folder}"},
        "files": {"a.img": {"size": "1M"}, "b.img": {"size": "1M"}},
    }  # fmt: skip
    once = {"rounds": 1, "warmup": 0, "timeout": patience(60)}
    stamps = [{"name": "kernel", "pattern": "Linux version"},
              {"name": "user space", "pattern": "guest: user space reached"}]  # fmt: skip
    boot = {"kind": "boot", "kernel": kernel, "initramfs": initramfs, "memory": "256M",
            "cmdline": "console=ttyS0 panic=-1", "stamps": stamps}  # fmt: skip
    asked = [boot, {"kind": "exits", "reads": 200}, {"kind": "jitter", "count": 50}]
    path = folder / "definitions.json"
    whole = {"contender": [ours], "measurement": [one | once for one in asked]}
    path.write_text(json.dumps(whole))
    return path


def measure(kernel: str, initramfs: str) -> None:
    """All three, and what the result says of them."""
    if not procfs.KVM_STATISTICS.exists():
        mount = ["mount", "-t", "debugfs", "none", "/sys/kernel/debug"]
        subprocess.run(mount, check=True)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder = Path(name)
        path = definitions(folder, kernel, initramfs)
        code = cli.main(["run", str(path), "--output", str(folder), "--no-pictures"])
        (file,) = folder.glob("2*.json")
        document = results.load(file)
    found = {one["kind"]: one["rows"][0] for one in document["measurements"]}
    print(json.dumps(found), flush=True)
    expect(code == 0 and document["complete"], f"{code}")
    boot = found["boot"]["values"]
    expect(0 < boot["kernel"][0] < boot["user space"][0], f"{boot}")
    expect(any(name.startswith("vmm ") for name in boot), f"{boot}")
    exits = found["exits"]["values"]
    expect(exits["io_exits"][0] >= 200 and exits["all"][0] >= exits["io_exits"][0], f"{exits}")
    expect(found["jitter"]["values"]["worst"][0] > 0, f"{found['jitter']}")
    expect("kvm_amd" in document["facts"]["kvm"], f"{document['facts']}")
