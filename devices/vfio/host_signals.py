"""What a host says about a device that it lent: that it wants it back, or that it failed.

Source: <linux/vfio.h> (VFIO_PCI_REQ_IRQ_INDEX, VFIO_PCI_ERR_IRQ_INDEX).
"""

from __future__ import annotations

import os

from vmm._native.vfio import ioctls as vfio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm._native.vfio.ioctls import VfioDevice


class HostSignals:
    """Two eventfds of one device, for the control thread's event loop; -1 where VFIO has none.

    ``request_fd``: the driver or the device is being taken away and the host waits for us, asking
    again every ten seconds. ``error_fd``: PCI Express reported an error that is not recoverable.
    """

    def __init__(self, device: VfioDevice) -> None:
        self._device = device
        self.request_fd = self._arm(vfio.REQ)
        self.error_fd = self._arm(vfio.ERR)

    def _arm(self, index: int) -> int:
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            if self._device.get_irq_count(index):
                self._device.trigger_eventfds(index, [fd])
                return fd
        except OSError:
            # A conventional PCI device has no error reporting; an old kernel no requests.
            pass
        os.close(fd)
        return -1

    def close(self) -> None:
        """Idempotent. VFIO lets go of the eventfds when the device's descriptor is closed."""
        for fd in (self.request_fd, self.error_fd):
            if fd >= 0:
                os.close(fd)
        self.request_fd = self.error_fd = -1
