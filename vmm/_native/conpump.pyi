from vmm._native.byteport import BytePort
from vmm._native.virtqueue import VirtQueue
from vmm._native.worker import Worker

class ConsoleWorker(Worker):
    def __init__(
        self,
        port: BytePort,
        receive: tuple[VirtQueue, int, int] | None,
        transmit: tuple[VirtQueue, int, int] | None,
        config_call_fd: int,
    ) -> None: ...
