from vmm._native.disk.blkpump import BlkWorker
from vmm._native.disk.overlay import Overlay

class OverlayBlkWorker(BlkWorker):
    overlay: Overlay | None
