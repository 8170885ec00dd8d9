"""Takes snapshots of one guest and brings it back to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm._native.kvm.vcpustate import VcpuState, settle
from vmm._native.kvm.vmstate import VmState, msr_index_list, xsave_size
from vmm._native.memory.ramimage import RamTracker
from vmm.debug.machinestate import MachineState
from vmm.debug.saveddisks import SavedDisk
from vmm.debug.shadow import pages_by_hardware
from vmm.debug.snapshot import Family, Snapshot
from vmm.errors import HostError, StateError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from vmm.debug.kernelsymbols import FoundSymbols
    from vmm.debug.machinestate import States
    from vmm.host.disk import Disk
    from vmm.machine import Machine
    from vmm.settings.config import Config


class Snapshots:
    """What a guest needs for its snapshots; made with the first. The thread that drives the guest,
    while the guest stands still.
    """

    def __init__(
        self,
        config: Config,
        machine: Machine,
        disks: Sequence[Disk],
        revive: Callable[[Snapshot], Any],
        lay_out: Callable[[], None],
        symbols: FoundSymbols,
    ) -> None:
        """``revive`` makes a guest of a snapshot; ``lay_out`` gives KVM all of RAM's slots anew.

        ``symbols`` are what this guest has found, for its family.
        """
        if machine.passed_through():
            names = ", ".join([function.name for function in machine.passed_through()])
            raise HostError(
                f"no snapshot of a guest with devices of the host's ({names}): what they hold "
                "cannot be read, and they write to its RAM",
                "leave `devices` out",
            )
        self._config = config
        self._machine = machine
        self._disks = disks
        self._revive = revive
        self._lay_out = lay_out
        self._family = Family(symbols)
        # The newest restored: it fits, so it does again.
        self._restored: Snapshot | None = None
        self._devices = MachineState(machine, watched=False)
        self._tracker = RamTracker(machine.memory)
        self._vcpus: tuple[VcpuState, ...] = ()
        # What the devices were when `touched` was last cleared.
        self._base: States | None = None
        # None until it is needed: most forks are only run.
        self._shadow: bool | None = None

    def capture(self) -> Snapshot:
        """All of it as it is now."""
        self._devices.quiesce()
        try:
            devices = self._devices.state()
            vcpus = self._capture_vcpus()
            vm = VmState.capture(self._machine.vm.fd)
            disks = [self._capture_disk(disk) for disk in self._disks]
            ram = self._tracker.capture()
            self._devices.clear_touched()
            self._base = devices
        finally:
            self._devices.go_on()
        return Snapshot(self._config, ram, vcpus, vm, devices, disks, self._revive, self._family)

    def _capture_vcpus(self) -> tuple[VcpuState, ...]:
        fds = [vcpu.fd for vcpu in self._machine.vcpus]
        for fd in fds:
            if not settle(fd):
                raise StateError(
                    f"vCPU {fd.index} is in the middle of an access to a device",
                    "let the guest run on for a moment, then take the snapshot",
                )
        if self._vcpus:
            pairs = zip(self._vcpus, fds, strict=True)
            self._vcpus = tuple([old.capture_again(fd) for old, fd in pairs])
        else:
            indices = msr_index_list(self._machine.vm.kvm)
            size = xsave_size(self._machine.vm.fd)
            self._vcpus = tuple([VcpuState.capture(fd, indices, size) for fd in fds])
        return self._vcpus

    def _capture_disk(self, disk: Disk) -> SavedDisk:
        return SavedDisk(disk, None if disk.overlay is None else disk.overlay.freeze())

    def restore(self, snapshot: Snapshot) -> None:
        """Make the guest what it was. An error leaves a guest that can only be closed."""
        if snapshot is not self._restored:
            self._fits(snapshot)
            self._restored = snapshot
        if self._shadow is None:
            self._shadow = not pages_by_hardware()
        self._devices.quiesce()
        try:
            paging = False
            for vcpu, state in zip(self._machine.vcpus, snapshot.vcpus, strict=True):
                paging = state.apply(vcpu.fd, self._shadow) or paging
            self._tracker.restore(snapshot.ram)
            if self._shadow and paging:
                # Or KVM goes on with what it made of the page tables that were.
                self._lay_out()
            snapshot.vm.apply(self._machine.vm.fd)
            for disk, saved in zip(self._disks, snapshot.disks, strict=True):
                if disk.overlay is not None:
                    disk.overlay.restore(saved.layers or ())
            self._devices.set_state(snapshot.devices, self._base)
            self._base = snapshot.devices
        finally:
            self._devices.go_on()

    def _fits(self, snapshot: Snapshot) -> None:
        ours = (self._machine.memory.regions, len(self._machine.vcpus), len(self._disks))
        its = (snapshot.ram.regions, len(snapshot.vcpus), len(snapshot.disks))
        if ours != its:
            raise StateError(
                f"the snapshot is of another machine: (RAM, CPUs, disks) {its}, here {ours}",
                "use snapshot.fork()",
            )

    def settle_new(self, snapshot: Snapshot, ahead_ns: int) -> None:
        """The first restore of a machine just made over the snapshot's RAM.

        Its clocks go on ``ahead_ns`` later than they stood.
        """
        for vcpu, state in zip(self._machine.vcpus, snapshot.vcpus, strict=True):
            if ahead_ns:
                state = state.copy()
                state.advance_tsc(ahead_ns)
            state.apply(vcpu.fd)
        snapshot.vm.apply(self._machine.vm.fd, ahead_ns)
        self._family = snapshot.family
        self._vcpus = snapshot.vcpus
        self._settle_devices(snapshot)

    def _settle_devices(self, snapshot: Snapshot) -> None:
        family, devices = snapshot.family, self._devices
        if snapshot.unlike is None:
            if family.fresh is None:
                family.fresh = devices.state()
            snapshot.unlike = devices.unlike(snapshot.devices, family.fresh)
        devices.become(snapshot.devices, snapshot.unlike)
        devices.go_on()
        self._base = snapshot.devices

    def close(self) -> None:
        """Give the descriptor back; snapshots stay good."""
        self._restored = None
        self._tracker.close()
