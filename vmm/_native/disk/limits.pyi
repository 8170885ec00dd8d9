from vmm._native.disk.blkpump import BlkWorker

Limit = tuple[int, int, int]

class Limits:
    def __init__(self, requests: Limit | None, bytes_: Limit | None) -> None: ...
    def govern(self, worker: BlkWorker) -> None: ...
