"""The machine that a figure belongs to."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path

from vmm.bench.facts import KVM_MODULES, cpu_model


def host_facts() -> dict[str, str]:
    """CPU, kernel, KVM module, revision: what a figure is worth nothing without."""
    modules = [name for name in KVM_MODULES if Path("/sys/module", name).exists()]
    revision = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "cpu": f"{cpu_model()} x {os.cpu_count()}",
        "kernel": platform.release(),
        "kvm": " ".join(modules) or "unknown",
        "python": platform.python_version(),
        "revision": revision,
    }
