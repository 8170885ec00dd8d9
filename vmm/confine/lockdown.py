"""Gives up, before the guest's first instruction, what only the start needed.

Made before anything is opened, entered when all is. What is on is told by `status`.
"""

from __future__ import annotations

import encodings.ascii  # noqa: F401  a status needs it, and its file may be closed by then
import os

from vmm._native.host import confine
from vmm.confine import rules
from vmm.confine.hands import Hands
from vmm.confine.programs import PROGRAMS
from vmm.errors import HostError
from vmm.host.files import CAP_IPC_LOCK
from vmm.kept import Kept
from vmm.log.hub import get_logger, hub
from vmm.log.sinks import FileSink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from vmm.machine import Machine
    from vmm.settings.config import Config

    class Place(Protocol):
        """An instance's folder, and the folder of all."""

        directory: str
        root: str


log = get_logger(__name__)

ON, LOG, OFF = "on", "log", "off"
CONTROL = 0


class Lockdown:
    """One for the process, which is one instance's. All of it belongs to the control thread.

    Everything that is started or made after this has no new privileges; each native thread has
    its kind's filter, and no capabilities. ``abstract``: it calls a socket without a path.
    """

    def __init__(self, config: Config, abstract: bool = False) -> None:
        self._config = config
        self._abstract = abstract
        # A debugger's thread drives the guest, and does what no vCPU does.
        self.seccomp = OFF if config.gdb is not None else config.seccomp
        # By it, what is pinned for a device, or locked, is not counted.
        self._keep = 1 << CAP_IPC_LOCK if config.devices or config.memory.mlock else 0
        self._inherited: list[int] = []
        self._abi = 0
        self._entered = self._locked = False
        self._hands: Hands | None = None
        self.kept: Kept | None = None

    def arm(self) -> None:
        """Before anything is opened, and before any other thread. OSError."""
        self._inherited = confine.open_descriptors()
        programs = () if self.seccomp == OFF else PROGRAMS
        confine.arm(programs, self.seccomp == LOG, self._keep)

    def enter(self, machine: Machine, place: Place) -> None:
        """Before this machine's vCPUs have threads: the process is confined, and it does without.

        What is left is lock_calls(). HostError when the kernel refuses it.
        """
        if not self._entered:
            self._entered = True
            self._keep_open(machine)
            self._close_inherited()
            if machine.memory.backing in ("memfd", "hugetlb"):
                confine.seal_size(machine.memory.fd)
            self._restrict_files(place)
            confine.lock_privileges()
            if self._config.seccomp == ON:
                confine.no_core()
            if self.seccomp != OFF:
                self._hands = Hands()
        if self._hands is not None:
            for function in machine.virtio:
                function.carry_out = self._hands.carry_out

    def _keep_open(self, machine: Machine) -> None:
        self.kept = Kept(self._config.kernel_path, self._config.initramfs_path)
        self.kept.kvm = os.dup(machine.vm.kvm.fileno())
        self.kept.mount = machine.memory.dup_mount()
        self.kept.refused = machine.memory.refused

    def _close_inherited(self) -> None:
        for fd in self._inherited:
            try:
                os.close(fd)
            except OSError as error:
                log.debug(f"descriptor {fd}, which was inherited: {error}")

    def _restrict_files(self, place: Place) -> None:
        assert self.kept is not None
        self._abi = abi = confine.landlock_abi()
        if not abi:
            return
        confine.landlock(
            rules.handled(abi),
            rules.TCP if abi >= rules.TCP_SINCE else 0,
            rules.ABSTRACT if abi >= rules.ABSTRACT_SINCE and not self._abstract else 0,
            rules.rules(self._config, place.directory, place.root, self.kept.mount),
        )

    def lock_calls(self) -> None:
        """The control thread has its filter from now on; idempotent. HostError.

        After enter(), and before any vCPU runs. One whose thread is there already has no filter
        but its own: each that it has costs every exit some time.
        """
        if self.seccomp == OFF or self._locked:
            return
        self._locked = True
        log_fd = next((sink.fileno() for sink in hub.sinks if isinstance(sink, FileSink)), -1)
        try:
            confine.lock_calls(CONTROL, log_fd)
        except OSError as error:
            raise HostError(
                f"this kernel gives no filter of system calls: {error}",
                "use one with CONFIG_SECCOMP_FILTER, or set VLLMD_HYPERVISOR_SECCOMP=off",
            ) from error

    def running(self) -> None:
        """Its guest runs: what it need not have waited for. OSError."""
        if self._hands is not None:
            self._hands.start()

    def status(self) -> dict[str, object]:
        """Facts for `status`: what is on."""
        return {
            "seccomp": self.seccomp if self._locked else OFF,
            "landlock": self._abi,
            "capabilities": ["ipc_lock"] if self._keep else [],
            "core_dumps": not (self._entered and self._config.seccomp == ON),
            "attach": self._config.attach,
            "network": interfaces(),
        }

    def close(self) -> None:
        """Once no vCPU runs; idempotent."""
        if self._hands is not None:
            self._hands.close()
            self._hands = None
        if self.kept is not None:
            self.kept.close()


def interfaces() -> list[str] | None:
    """Network interfaces in sight, but the loopback's; None where the kernel does not tell.

    Without any, the network namespace is one of its own, as under the system unit.
    """
    try:
        with open("/proc/self/net/dev", encoding="ascii", errors="replace") as file:
            rows = file.read().splitlines()[2:]
    except OSError:
        return None
    return [name for row in rows if (name := row.partition(":")[0].strip()) != "lo"]
