from collections.abc import Callable

from vmm._native.kvm.bus import Bus, BusTarget

class HookTarget(BusTarget):
    enabled: bool
    spared: int
    watch: bool
    hits: int
    def __init__(
        self,
        function: Callable[[int, int, int, int, bool], tuple[int, int]],
        start: int = 0,
        bus: Bus | None = None,
        watch: bool = False,
        spared: int = -1,
    ) -> None: ...
