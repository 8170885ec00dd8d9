from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vmm._native.kvm.condition import Condition
from vmm._native.kvm.vcpu import VcpuFd
from vmm._native.memory.codepatch import Patch

class PointTable:
    alone: bool
    resume_flag: bool
    stop_port: int
    def __init__(
        self,
        slots: Sequence[tuple[int, bool, Condition | None]],
        sites: Iterable[tuple[int, Patch | None, Sequence[Condition | None]]],
        running: Mapping[str, Any],
        stepping: Mapping[str, Any],
        alone: bool,
        resume_flag: bool,
        stop_port: int,
    ) -> None: ...

class PointGate:
    active: bool
    def gate(self) -> object: ...
    def set_table(self, table: PointTable) -> None: ...
    def decide(self, vcpu: VcpuFd, pc: int, exception: int, dr6: int = 0) -> int: ...
