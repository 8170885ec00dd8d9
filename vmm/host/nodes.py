"""Files that the host has for each user: devices in /dev, the runtime directory.

Are they there, and may this user open them? With what cures it when not.
"""

from __future__ import annotations

from vmm.host.files import KVM_PATH
from vmm.host.finding import Finding, problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.host.files import Host

KVM_GROUP = "kvm"
VFIO = "/dev/vfio/vfio"
GROUP_MODE = 0o060
GROUP_RULE = 'the udev rule SUBSYSTEM=="vfio", OWNER="{}"'
OTHER_RULE = "a udev rule with OWNER="
NO_PERMISSION = "no permission to open {}"


def kvm_node(host: Host) -> Finding:
    """/dev/kvm, which a group's members may open as a rule."""
    if not host.exists(KVM_PATH):
        return _no_kvm(host)
    if host.usable(KVM_PATH):
        return Finding("kvm-node", f"{KVM_PATH} may be opened", KVM_PATH)
    if host.uid == 0:
        return _withheld("kvm-node", KVM_PATH)
    found = NO_PERMISSION.format(KVM_PATH)
    mode, _, gid = host.owner(KVM_PATH)
    group = host.group(gid)
    commands = []
    if gid == 0 or mode & GROUP_MODE != GROUP_MODE:
        group = KVM_GROUP
        if not host.has_group(group):
            commands.append(f"groupadd --system {group}")
        commands += [f"chgrp {group} {KVM_PATH}", f"chmod 660 {KVM_PATH}"]
    user = host.user()
    if user.isdigit():
        # Nobody that usermod knows.
        return problem("kvm-node", found, KVM_PATH, cure=[f"chown {user} {KVM_PATH}"])
    if user not in host.group_members(group):
        commands.append(f"usermod -aG {group} {user}")
    return problem("kvm-node", found, KVM_PATH, cure=commands, advice="log in again")


def kvm_refused(host: Host) -> Finding:
    """Why it could not be opened. The file's mode may allow what a container does not."""
    finding = kvm_node(host)
    return finding if finding.code else _withheld("kvm-node", KVM_PATH)


def _withheld(name: str, path: str) -> Finding:
    found = NO_PERMISSION.format(path)
    return problem(name, found, path, advice="allow it: DeviceAllow= in a unit, docker --device")


def _no_kvm(host: Host) -> Finding:
    """No such file: a module is missing, or the processor cannot, or is not let."""
    flags = (host.text("/proc/cpuinfo") or "").partition("flags")[2].partition("\n")[0].split()
    found = f"{KVM_PATH} does not exist: this host has no KVM"
    for flag, module in (("vmx", "kvm_intel"), ("svm", "kvm_amd")):
        if flag in flags:
            return problem("kvm-node", found, KVM_PATH, cure=[f"modprobe {module}"])
    return problem(
        "kvm-node", found, KVM_PATH,
        advice="load the module (modprobe kvm_intel or kvm_amd), or switch virtualisation on in "
        "the firmware set-up, or enable nesting when this host is itself a VM",
    )  # fmt: skip


def vfio_container(host: Host) -> Finding:
    """/dev/vfio/vfio, which is harmless by itself and open to all as the kernel makes it."""
    if not host.exists(VFIO):
        return problem("vfio-node", f"{VFIO} does not exist", VFIO, cure=["modprobe vfio-pci"])
    if not host.usable(VFIO):
        found = NO_PERMISSION.format(VFIO)
        return problem("vfio-node", found, VFIO, cure=[f"chmod 666 {VFIO}"])
    return Finding("vfio-node", f"{VFIO} may be opened", VFIO)


def vfio_group(host: Host, group: int) -> Finding | None:
    """/dev/vfio/N, which is there while vfio-pci has a device of the group.

    None when root only waits for that, which the devices' findings tell.
    """
    path = f"/dev/vfio/{group}"
    if host.exists(path):
        return vfio_file(host, path, GROUP_RULE)
    if host.uid == 0:
        return None
    return _not_ours(host, path, f"{path} does not exist yet, and will be root's alone", GROUP_RULE)


def vfio_file(host: Host, path: str, rule: str = OTHER_RULE) -> Finding:
    """A file of VFIO's that is root's at first: a group, /dev/iommu, or a device's own.

    ``rule``: the udev rule that keeps it a user's, whose name goes to the braces.
    """
    if host.usable(path):
        return Finding("vfio-node", f"{path} may be opened", path)
    if host.uid == 0:
        return _withheld("vfio-node", path)
    return _not_ours(host, path, NO_PERMISSION.format(path), rule)


def _not_ours(host: Host, path: str, found: str, rule: str) -> Finding:
    user = host.user()
    cure, advice = [f"chown {user} {path}"], f"{rule.format(user)} keeps it so"
    return problem("vfio-node", found, path, cure=cure, advice=advice)


def runtime_directory_missing(host: Host) -> Finding:
    """The problem that /run/user/UID is not there: made at a login, or for good by lingering."""
    user = host.user()
    path = f"/run/user/{host.uid}"
    cure = f"install -d -m 700 -o {user} {path}"
    if host.exists("/run/systemd/system"):
        cure = f"loginctl enable-linger {user}"
    return problem(
        "instance", f"XDG_RUNTIME_DIR is not set and {path} does not exist", cure=[cure],
        advice="or set XDG_RUNTIME_DIR to a folder of this user's",
    )  # fmt: skip
