"""CPU_PLACEMENT against this host: its processors, its nodes, and what its KVM lets a guest do."""

from __future__ import annotations

from vmm.errors import SETTING_PREFIX, ConfigError, HostError
from vmm.host.files import HOST, SYS_NODES
from vmm.host.finding import Finding, problem, warning
from vmm.host.pci import SYS_DEVICES, look_up_devices
from vmm.settings.placement import AUTO, EXITS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm._native.kvm.vm import Kvm, VmFd
    from vmm.host.files import Host
    from vmm.settings.config import Config
    from vmm.settings.memory import MemoryConfig
    from vmm.settings.parse import DeviceSpec
    from vmm.settings.placement import Placement

VARIABLE = f"{SETTING_PREFIX}CPU_PLACEMENT"
ONLINE = "/sys/devices/system/cpu/online"
CAP_DISABLE_EXITS = 143  # KVM_CAP_X86_DISABLE_EXITS


def cpu_list(text: str) -> set[int]:
    """Numbers of a list as sysfs has them (``0-3,8``); what is none is left out."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if first.isdigit() and (last.isdigit() or not dash):
            found.update(range(int(first), int(last or first) + 1))
    return found


def numbers_text(numbers: set[int]) -> str:
    """The other way round."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join([f"{a}-{b}" if b > a else str(a) for a, b in parts]) or "none"


def findings(
    placement: Placement,
    vcpus: int | None,
    devices: Sequence[DeviceSpec],
    memory: MemoryConfig | None,
    host: Host = HOST,
) -> list[Finding]:
    """What this host says to it; ``vcpus`` and ``memory`` None: not known."""
    found = _cpus(placement, vcpus, host) if placement.cpus else []
    if placement.node is not None:
        node, finding = node_of(placement, devices, host)
        found.append(finding)
        if node is not None:
            found += _node(node, placement, vcpus, memory, host)
    return found or [Finding("placement", f"{VARIABLE}: no processor and no node is asked for")]


def _cpus(placement: Placement, vcpus: int | None, host: Host) -> list[Finding]:
    wanted, told = set(placement.cpus), f"{VARIABLE}: cpus={numbers_text(set(placement.cpus))}"
    if vcpus is not None and len(wanted) != vcpus:
        return [
            problem(
                "placement", f"{told} are {len(wanted)} processors for {vcpus} vCPUs",
                advice=f"name one for each, or set CPU_COUNT to {len(wanted)}",
                code=ConfigError.exit_code,
            )
        ]  # fmt: skip
    online, ours = cpu_list(host.text(ONLINE) or ""), host.processors()
    if absent := wanted - online:
        text = f"{told}: this host has no processor {numbers_text(absent)}"
        return [problem("placement", text, advice=f"it has {numbers_text(online)} ({ONLINE})")]
    if kept := wanted - ours:
        text = f"{told}: processor {numbers_text(kept)} is not this process's to use"
        advice = (
            f"its affinity mask and its cpuset leave {numbers_text(ours)}: see taskset -p, and "
            "CPUAffinity= and AllowedCPUs= of its unit"
        )
        return [problem("placement", text, advice=advice)]
    return [Finding("placement", f"{told}: one for each vCPU")]


def node_of(
    placement: Placement, devices: Sequence[DeviceSpec], host: Host
) -> tuple[int | None, Finding]:
    """The node that is meant, None where that is not known; and what to say of it."""
    told = f"{VARIABLE}: node={placement.node}"
    node: int | None = None
    if placement.node == AUTO:
        found, _ = look_up_devices(devices, host)
        nodes = {host.number(f"{SYS_DEVICES}/{device.bdf}/numa_node") for device in found}
        if len(nodes) != 1 or None in nodes:
            why = "no device is passed through" if not nodes else "the devices are on several nodes"
            why = "the host does not tell the devices' node" if None in nodes else why
            return None, problem(
                "placement", f"{told}: {why}", advice="say node=N", code=ConfigError.exit_code
            )
        node = nodes.pop()
    elif isinstance(placement.node, int):
        node = placement.node
    if host.exists(f"{SYS_NODES}/node{node}"):
        return node, Finding("placement", f"{told}: vCPUs and guest RAM are on node {node}")
    advice = f"ls -d {SYS_NODES}/node* shows them"
    return None, problem("placement", f"{told}: this host has no node {node}", advice=advice)


def node_processors(node: int, host: Host = HOST) -> set[int]:
    """Those of a node that this process may use."""
    text = host.text(f"{SYS_NODES}/node{node}/cpulist") or ""
    return cpu_list(text) & host.processors()


def _node(
    node: int, placement: Placement, vcpus: int | None, memory: MemoryConfig | None, host: Host
) -> list[Finding]:
    told, found = f"{VARIABLE}: node {node}", []
    if memory is not None and memory.host_numa_node not in (None, node):
        text = f"{told} and host_numa_node={memory.host_numa_node} of MEMORY_CONFIG are two nodes"
        found.append(problem("placement", text, advice="leave one out", code=ConfigError.exit_code))
    own = node_processors(node, host)
    if placement.cpus:
        if far := set(placement.cpus) - own:
            text = f"{told} is not where processor {numbers_text(far)} is"
            found.append(warning("placement", text, advice=f"the node has {numbers_text(own)}"))
    elif not own:
        text = f"{told} has no processor that this process may use"
        found.append(problem("placement", text, advice="choose another node, or widen the cpuset"))
    elif vcpus is not None and vcpus > len(own):
        text = f"{told} has {len(own)} processors for {vcpus} vCPUs: they will wait for each other"
        found.append(warning("placement", text, advice="lower CPU_COUNT"))
    return found


def ram(
    memory: MemoryConfig,
    placement: Placement | None,
    devices: Sequence[DeviceSpec],
    host: Host = HOST,
) -> MemoryConfig:
    """Guest RAM on the node that ``placement`` means; as it was where that is not known."""
    if placement is None or placement.node is None:
        return memory
    node, _ = node_of(placement, devices, host)
    return memory if node is None else memory.replace(host_numa_node=node)


def placed(config: Config, host: Host = HOST) -> Config:
    """The same with the node in numbers, for the vCPUs and for guest RAM. HostError."""
    placement = config.placement
    if placement is None or placement.node is None:
        return config
    node, finding = node_of(placement, config.devices, host)
    if node is None:
        raise HostError(finding.found, finding.remedy)
    memory = ram(config.memory, placement, config.devices, host)
    return config.replace(placement=placement.replace(node=node), memory=memory)


def vcpu_processors(placement: Placement, index: int) -> set[int] | None:
    """Where a vCPU may run, of a placement that placed() has seen; None: anywhere."""
    if placement.cpus:
        return {placement.cpus[index]}
    return node_processors(placement.node) if isinstance(placement.node, int) else None


def exits_mask(kvm: Kvm, placement: Placement) -> int:
    """What KVM_CAP_X86_DISABLE_EXITS takes for these words; HostError for one that it lacks."""
    offered = kvm.check_extension(CAP_DISABLE_EXITS)
    lacking = [word for word in placement.exits if not EXITS[word] & offered]
    if lacking:
        names = "+".join([word for word, bit in EXITS.items() if bit & offered]) or "none of them"
        raise HostError(
            f"{VARIABLE}: exits={'+'.join(lacking)}: this host's KVM lets no guest do that itself",
            f"it offers {names}",
        )
    return sum([EXITS[word] for word in placement.exits])


def enable_exits(kvm: Kvm, vm: VmFd, placement: Placement) -> None:
    """Let the guest do what is asked for; before the first vCPU. HostError."""
    mask = exits_mask(kvm, placement)
    if mask:
        vm.enable_cap(CAP_DISABLE_EXITS, mask)
