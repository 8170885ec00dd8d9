from collections.abc import Sequence

from vmm._native.kvm.vcpu import VcpuFd

def configure(
    vcpus: list[VcpuFd], tables: list[bytes], pairs: Sequence[tuple[int, int]], helpers: int
) -> list[int]: ...
