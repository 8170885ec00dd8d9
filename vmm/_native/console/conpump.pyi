from vmm._native.console.byteport import BytePort
from vmm._native.virtio.virtqueue import VirtQueue
from vmm._native.virtio.worker import Worker

class ConsoleWorker(Worker):
    def __init__(
        self,
        port: BytePort,
        receive: tuple[VirtQueue, int, int] | None,
        transmit: tuple[VirtQueue, int, int] | None,
        config_call_fd: int,
    ) -> None: ...
