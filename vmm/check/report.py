"""`check`: everything that can be known about this host and these settings without starting.

Stages follow the order in which `start` comes to things, so that the first stage with a problem
tells the exit code that `start` would have. What cannot be looked at (a setting is missing, or a
device file may not be opened) is left out; why is told by another finding.
"""

from __future__ import annotations

from vmm import __version__
from vmm.check import devices, files, kvm, resources
from vmm.errors import ConfigError, VmmError
from vmm.host import pci, placement, preflight, vfio
from vmm.host.files import HOST
from vmm.host.finding import OK, PROBLEM, WARNING, Finding, of_error, problem, refuse, warning
from vmm.host.nodes import kvm_node, runtime_directory_missing
from vmm.host.roles import file_roles, named_files
from vmm.run.instance import (
    Instance,
    instance_names,
    name_from_image,
    runtime_base,
    runtime_directory,
)
from vmm.settings.config import survey

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from vmm.host.files import Host
    from vmm.settings.memory import MemoryConfig

SCHEMA_VERSION = 1


class Report:
    """What was found, stage by stage. ``exit_code`` is the one `start` would refuse with, or 0."""

    def __init__(self, name: str | None, user: str, uid: int, stages: list[list[Finding]]) -> None:
        self.stages = stages
        self.name = name
        self.user = user
        self.uid = uid
        self.findings = [finding for stage in stages for finding in stage]
        codes = [[f.code for f in stage if f.level == PROBLEM] for stage in stages]
        self.exit_code = next((min(stage) for stage in codes if stage), 0)

    def facts(self) -> dict[str, Any]:
        """What `check --json` prints; docs/check.md describes it."""
        return {
            "schema_version": SCHEMA_VERSION,
            "version": __version__,
            "name": self.name,
            "user": {"name": self.user, "uid": self.uid},
            "exit_code": self.exit_code,
            "findings": [
                {
                    "name": finding.name,
                    "subject": finding.subject,
                    "level": finding.level,
                    "found": finding.found,
                    "cure": list(finding.cure),
                    "as_root": finding.as_root,
                    "advice": finding.advice,
                    "exit_code": finding.code,
                }
                for finding in self.findings
            ],
        }

    def text(self) -> str:
        """A line for each finding, cure and advice below it; then the verdict."""
        width = max([len(finding.name) for finding in self.findings])
        lines = []
        for finding in self.findings:
            told = finding.found.replace("\n", "; ")
            lines.append(f"{finding.level:8} {finding.name:{width}}  {told}")
            who = "as root" if finding.as_root else "cure"
            lines += [f"{'':9}{'':{width}}    {who}: {command}" for command in finding.cure]
            if finding.advice:
                lines.append(f"{'':9}{'':{width}}    advice: {finding.advice}")
        lines.append(self._verdict())
        return "\n".join(lines)

    def _verdict(self) -> str:
        counts = dict.fromkeys((OK, WARNING, PROBLEM), 0)
        for finding in self.findings:
            counts[finding.level] += 1
        told = f"problems: {counts[PROBLEM]}, warnings: {counts[WARNING]}"
        if self.exit_code:
            return f"{told}; start would end with exit code {self.exit_code}"
        if any(
            finding.name == "kvm-native" and finding.level == WARNING for finding in self.findings
        ):
            return f"{told}; start would begin, but no usual kernel would run: see kvm-native"
        return f"{told}; start would go through"

    def refuse(self) -> None:
        """Raise what `start` would end with: the first stage with problems. Else nothing."""
        for stage in self.stages:
            refuse(stage)


def examine(environment: Mapping[str, str], host: Host = HOST) -> Report:
    """Look at everything. Changes nothing, and takes no lock."""
    values, warnings, problems = survey(environment)
    stages = [_settings(warnings, problems), file_roles(values)]
    stages.append(files.log_destinations(values.get("log_destinations", ())))
    stages.append(_host(values, host))
    name = values.get("name") or _name_from(values)
    stages.append(_instance(name, environment, host))

    def stop(pids: list[int]) -> tuple[list[str], bool]:
        return stop_commands(pids, environment)

    system, config = values.get("system_images", ()), values.get("config_images", ())
    stages += [files.image_lock(image, False, stop) for image in system]
    stages += [files.image_lock(image, True, stop) for image in config]
    ends = [(end, values[end]) for end in ("console", "serial") if end in values]
    stages.append(files.consoles(ends, named_files(values)))
    if "kernel_path" in values and not _has_problem(stages[3], "kernel-file"):
        memory = values.get("memory")
        ram = memory.size if memory else None
        initramfs, cmdline = values.get("initramfs_path"), values.get("cmdline")
        stages.append(files.kernel(values["kernel_path"], initramfs, cmdline, ram))
    if "cpu_count" in values:
        stages.append([resources.descriptors(host, values["cpu_count"], [*system, *config])])
    stages.append(kvm.kvm(host, values.get("cpu_count"), values.get("placement")))
    if "memory" in values and not _has_problem(stages[3], "memory"):
        stages.append(resources.guest_ram(values["memory"], host))
    found, _ = pci.look_up_devices(values.get("devices", ()), host)
    groups = dict.fromkeys([device.group for device in found])
    stages.append(devices.groups_in_use(host, groups, stop))
    if "memory" in values:
        bdfs = [device.bdf for device in found]
        stages.append(devices.device_nodes(host, bdfs, _ram(values, host).host_numa_node))
    return Report(name, host.user(), host.uid, stages)


def _has_problem(findings: list[Finding], name: str) -> bool:
    return any(finding.name == name and finding.level == PROBLEM for finding in findings)


def _settings(warnings: list[str], problems: list[tuple[str, str]]) -> list[Finding]:
    code = ConfigError.exit_code
    findings = [problem("setting", text, variable, code=code) for variable, text in problems]
    findings += [warning("setting", text, text.partition(":")[0]) for text in warnings]
    return findings or [Finding("setting", "all settings are well formed")]


def _ram(values: dict[str, Any], host: Host) -> MemoryConfig:
    """Guest RAM, on the node where it will be."""
    placing, specs = values.get("placement"), values.get("devices", ())
    return placement.ram(values["memory"], placing, specs, host)


def _host(values: dict[str, Any], host: Host) -> list[Finding]:
    """What `start` checks before anything else, and the host's memory, IOMMU and devices."""
    findings = preflight.kernel_files(values.get("kernel_path"), values.get("initramfs_path"))
    findings += preflight.images(values.get("system_images", ()), values.get("config_images", ()))
    if values.get("placement") is not None:
        findings += placement.findings(
            values["placement"], values.get("cpu_count"), values.get("devices", ()),
            values.get("memory"), host,
        )  # fmt: skip
    if "memory" in values:
        findings.append(preflight.memory(_ram(values, host), host))
    findings += resources.memory_nodes(host)
    findings.append(kvm_node(host))
    findings.append(vfio.iommu(host))
    if values.get("devices"):
        disks = len(values.get("system_images", ())) + len(values.get("config_images", ()))
        return findings + preflight.devices(values["devices"], values.get("memory"), host, disks)
    if "memory" in values:
        findings += preflight.locked(values["memory"], host)
    remapping = vfio.interrupt_remapping(host)
    findings += vfio.modules(host, needed=False)
    if remapping is not None:
        # No device is given away: nothing to refuse.
        findings.append(remapping.replace(level=OK if remapping.level == OK else WARNING, code=0))
    return findings + pci.candidates(host)


def _name_from(values: dict[str, Any]) -> str | None:
    images = values.get("system_images")
    return name_from_image(images[0].path) if images else None


def _instance(name: str | None, environment: Mapping[str, str], host: Host) -> list[Finding]:
    """The instance can have its folder, and nobody runs it."""
    if not environment.get("XDG_RUNTIME_DIR") and not host.exists(runtime_base(environment)):
        return [runtime_directory_missing(host)]
    if name is None:
        return []
    try:
        instance = Instance(name, environment)
        instance.check_folder()
        holder = instance.holder()
    except ConfigError as error:
        text = "; ".join(error.problems)
        return [problem("instance", text, name, code=error.exit_code)]
    except VmmError as error:
        return [of_error("instance", error, name)]
    except OSError as error:
        return [of_error("instance", instance.unusable(error.strerror), name)]
    if holder is None:
        return [Finding("instance", f"{name} is not running", name)]
    busy = instance.busy(holder)
    return [
        problem(
            "instance", busy.problem, name, cure=[f"vllmd-hypervisor stop {name}"],
            as_root=False, code=busy.exit_code,
        )
    ]  # fmt: skip


def stop_commands(pids: list[int], environment: Mapping[str, str]) -> tuple[list[str], bool]:
    """Commands that end these processes: instances of this user by their name, others by pid.

    With them: whether they need root. None for processes that this user cannot see.
    """
    names = {}
    try:
        for name in instance_names(runtime_directory(environment)):
            holder = Instance(name, environment).holder()
            if holder is not None:
                names[holder.pid] = name
    except (VmmError, OSError):
        names.clear()
    commands = [f"vllmd-hypervisor stop {names[pid]}" for pid in pids if pid in names]
    others = [f"kill {pid}" for pid in pids if pid not in names]
    return [*commands, *others], bool(others)
