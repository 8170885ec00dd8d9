"""What DEBUG adds to the log beside lines elsewhere: what was set, what is here, how it goes.

Imported only while debugging; nothing of it costs a start without.
"""

from __future__ import annotations

import os
import time

from vmm import __version__
from vmm.host.files import HOST
from vmm.host.kvm import max_vcpus
from vmm.host.placement import numbers_text
from vmm.light.printable import size_text
from vmm.log.hub import get_logger
from vmm.settings.config import settings_in_use

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from devices.pci.function import PciFunction
    from vmm.machine import Machine
    from vmm.run.eventloop import EventLoop, Timer

log = get_logger(__name__)

RATE_SECONDS = 5.0
MEMORY_FACTS = ("MemTotal:", "MemAvailable:", "HugePages_Free:", "Hugepagesize:")
LIMITS = ("Max open files", "Max locked memory", "Max processes", "Max address space")
# In what people put on a kernel's command line, against better advice.
SECRET_WORDS = ("credential", "password", "passwd", "passphrase", "secret", "token")
THP = "/sys/kernel/mm/transparent_hugepage/enabled"


def tell_settings(environment: Mapping[str, str]) -> None:
    """Every setting with its source, a line each."""
    for name, value, source in settings_in_use(environment):
        value = without_secrets(value)
        log.debug(f"setting {name}={value} ({source})")


def without_secrets(value: str) -> str:
    """A command line with what its own words call a secret left out: the log has more readers."""
    return " ".join([_without_secret(word) for word in value.split(" ")])


def _without_secret(word: str) -> str:
    key, equals, _ = word.partition("=")
    secret = equals and any(part in word.lower() for part in SECRET_WORDS)
    return f"{key}=(not shown)" if secret else word


def tell_host() -> None:
    """What this process runs on."""
    kernel = os.uname()
    log.debug(
        f"host: version {__version__} on {kernel.sysname} {kernel.release} {kernel.machine}, "
        f"user {os.geteuid()}, {len(os.sched_getaffinity(0))} processors: {_processor()}"
    )
    lines = (HOST.text("/proc/meminfo") or "").split("\n")
    facts = [" ".join(line.split()) for line in lines if line.startswith(MEMORY_FACTS)]
    log.debug(f"host: memory: {', '.join(facts)}; transparent huge pages: {HOST.text(THP)}")
    lines = (HOST.text("/proc/self/limits") or "").split("\n")
    facts = [" ".join(line.split()) for line in lines if line.startswith(LIMITS)]
    log.debug(f"host: limits (soft, hard): {', '.join(facts)}")


def _processor() -> str:
    text = (HOST.text("/proc/cpuinfo") or "").partition("model name")[2]
    return text.partition("\n")[0].strip("\t: ") or "unknown"


def tell_machine(machine: Machine) -> None:
    """What the guest finds: RAM, vCPUs, and each function of the PCI bus."""
    kvm = machine.vm.kvm
    log.debug(f"KVM API {kvm.get_api_version()}, up to {max_vcpus(kvm)} vCPUs")
    ram = [f"{size_text(size)} at {gpa:#x}" for gpa, size in machine.memory.regions]
    log.debug(
        f"guest: {len(machine.vcpus)} vCPUs, {machine.phys_bits} address bits, RAM {', '.join(ram)}"
    )
    for vcpu in machine.vcpus:
        if vcpu.processors is not None:
            where = numbers_text(vcpu.processors)
            log.debug(f"guest: vCPU {vcpu.index} runs on the host's processors {where}")
    if machine.config.placement is not None:
        log.debug(f"guest: placement: {machine.config.placement.status()}")
    for slot, function in enumerate(machine.pci.functions):
        if function is not None:
            log.debug(f"guest: 00:{slot:02x}.0 {_describe(function)}")
    for passed in machine.passed_through():
        log.debug(f"guest: {passed.name}: {passed.status()}")
    for virtio in machine.virtio:
        log.debug(f"guest: {virtio.name}: {len(virtio.msix.vectors)} MSI-X vectors")


def _describe(function: PciFunction) -> str:
    vendor, device = function.config_read(0, 2), function.config_read(2, 2)
    kind = function.config_read(8, 4) >> 8
    bars = [
        f"BAR {bar.index}: {bar.kind} of {size_text(bar.size)} at {bar.value:#x}"
        for bar in function.bars
    ]
    return ", ".join([f"{function.name} [{vendor:04x}:{device:04x}] class {kind:06x}", *bars])


class ExitRates:
    """A line about the exits of one machine every few seconds until stop(). Control thread.

    It tells the rates by kind, and the place that most of the last exits were at.
    """

    def __init__(self, machine: Machine, loop: EventLoop) -> None:
        self._machine = machine
        self._loop = loop
        self._counts = machine.exits()
        self._when = time.monotonic()
        self._timer: Timer | None = loop.call_later(RATE_SECONDS, self._tell)

    def stop(self) -> None:
        """Tell no more; idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tell(self) -> None:
        now, counts = time.monotonic(), self._machine.exits()
        seconds = now - self._when
        rates = [
            f"{name} {(count - self._counts.get(name, 0)) / seconds:.0f}"
            for name, count in counts.items()
            if count != self._counts.get(name, 0)
        ]
        log.debug(f"exits per second: {', '.join(rates) or 'none'}{self._busiest()}")
        self._counts, self._when = counts, now
        self._timer = self._loop.call_later(RATE_SECONDS, self._tell)

    def _busiest(self) -> str:
        places: dict[tuple[str, int], int] = {}
        for vcpu in self._machine.vcpus:
            for name, address, _, _, _ in vcpu.loop.last_exits():
                places[name, address] = places.get((name, address), 0) + 1
        if not places:
            return ""
        (name, address), count = max(places.items(), key=lambda item: item[1])
        return f"; {count} of the last {sum(places.values())} were {name} {address:#x}"
