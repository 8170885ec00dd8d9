from collections.abc import Callable, Sequence

from vmm._native.kvm.bus import Bus, BusTarget
from vmm._native.kvm.condition import Condition
from vmm._native.kvm.vcpu import VcpuFd

class HookTarget(BusTarget):
    enabled: bool
    spared: int
    watch: bool
    hits: int
    passed: int
    def __init__(
        self,
        function: Callable[[int, int, int, int, bool], tuple[int, int]],
        start: int = 0,
        bus: Bus | None = None,
        watch: bool = False,
        spared: int = -1,
    ) -> None: ...
    def set_condition(self, condition: Condition, vcpus: Sequence[VcpuFd]) -> None: ...
