from collections.abc import Sequence

DEPTH_MAX: int
STEPS_MAX: int
OPERATIONS: dict[str, int]

class Condition:
    wants_system: bool
    wants_registers: bool
    passed: int
    def __init__(self, program: Sequence[tuple[int, int]]) -> None: ...
    def evaluate(self, registers: Sequence[int]) -> bool: ...
