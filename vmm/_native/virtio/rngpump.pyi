from vmm._native.virtio.virtqueue import VirtQueue
from vmm._native.virtio.worker import Worker

class RngWorker(Worker):
    def __init__(
        self, queue: VirtQueue, kick_fd: int, call_fd: int, config_call_fd: int
    ) -> None: ...
