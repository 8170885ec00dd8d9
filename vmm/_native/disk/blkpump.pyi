from vmm._native.virtio.virtqueue import VirtQueue
from vmm._native.virtio.worker import Worker

class Flushed:
    failed: bool

class BlkWorker(Worker):
    engine: str
    call_fd: int
    writeback: int
    can_discard: bool
    read_only: bool
    flushed: Flushed
    reads: int
    writes: int
    flushes: int
    discards: int
    errors: int
    bounced: int
    throttled: int
    polling: bool
    def __init__(
        self,
        queue: VirtQueue,
        fd: int,
        sectors: int,
        read_only: bool,
        block_device: bool,
        serial: bytes,
        kick_fd: int,
        call_fd: int,
        config_call_fd: int,
    ) -> None: ...
    def set_direct(self, memory: int, file: int) -> None: ...
    def counters(self) -> dict[str, int]: ...
