"""Where debuggers call: a port on loopback or a unix socket, and the thread that listens there.

One debugger has the seat; another one that calls meanwhile is sent away at once, and so is another
user. The thread only moves bytes: what is done is done by the thread that drives the guest.
"""

from __future__ import annotations

import os
import select
import threading
import time
from typing import TYPE_CHECKING, Any

from vmm.debug.gdb.caller import allowed
from vmm.debug.gdb.client import SILENT_SECONDS, Client
from vmm.errors import HostError
from vmm.host.console_socket import identity, listen, take_away
from vmm.log.hub import get_logger
from vmm.settings.gdb import TCP, GdbAddress

if TYPE_CHECKING:
    from collections.abc import Callable

log = get_logger(__name__)

BACKLOG = 8
REST_SECONDS = 0.5


class Door:
    """Listens from the beginning to close(). ``address`` is what a debugger is told.

    ``on_event`` is called on the door's thread when the one that has the seat said something, or
    is gone.
    """

    def __init__(self, address: GdbAddress, on_event: Callable[[], None]) -> None:
        self._on_event = on_event
        self._client: Client | None = None
        self._changed = threading.Condition()
        self._closing = False
        self._listener, self.address = _listen(address)
        self._file = None if address.kind == TCP else identity(address.path)
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._listen_on, name="gdb door", daemon=True)
        self._thread.start()

    @property
    def client(self) -> Client | None:
        """The debugger that has the seat and has said something."""
        client = self._client
        return client if client is not None and client.spoke and not client.dismissed else None

    def wait(self, ended: Callable[[], bool]) -> Client | None:
        """Wait for client; None when the door is closed or ``ended()``: nudge() looks again."""
        with self._changed:
            self._changed.wait_for(lambda: self.client or self._closing or ended())
        return None if self._closing or ended() else self.client

    def nudge(self) -> None:
        """Let wait() look again."""
        with self._changed:
            self._changed.notify_all()

    def dismiss(self, client: Client) -> None:
        """Hang up; the seat is free. The driving thread, which does not use it any more."""
        client.dismissed = True
        self._wake()

    def _wake(self) -> None:
        os.eventfd_write(self._wake_fd, 1)

    def _listen_on(self) -> None:
        while not self._closing:
            try:
                self._round()
            except OSError as error:
                # Without descriptors the caller stays in the queue: asked again after a while.
                log.warning(f"gdb: {error}")
                time.sleep(REST_SECONDS)

    def _round(self) -> None:
        client = self._client
        poll = select.poll()
        poll.register(self._wake_fd, select.POLLIN)
        timeout = None
        if client is None or not client.over:
            # Else whoever calls waits until the seat is free.
            poll.register(self._listener, select.POLLIN)
        if client is not None and not client.gone:
            poll.register(client.link, select.POLLRDHUP | (0 if client.full else select.POLLIN))
            timeout = None if client.spoke else SILENT_SECONDS * 1000
        ready = dict(poll.poll(timeout))
        if ready.pop(self._wake_fd, 0):
            os.eventfd_read(self._wake_fd)
        if ready.pop(self._listener.fileno(), 0):
            self._accept()
        if client is not None:
            self._attend(client, ready.get(client.link.fileno(), 0))

    def _attend(self, client: Client, events: int) -> None:
        if events & select.POLLIN and not client.full:
            client.receive()
        elif events:
            client.hung_up()
        if client.dismissed or (not client.spoke and (client.over or client.silent_too_long)):
            self._client = None
            client.close()
        elif events:
            self.nudge()
            self._on_event()

    def _accept(self) -> None:
        import _socket

        fd, _ = self._listener._accept()
        link = _socket.socket(fileno=fd)
        try:
            welcome = self._client is None and allowed(link)
        except OSError:
            welcome = False
        if not welcome:
            log.debug("gdb: a caller was sent away")
            link.close()
            return
        if link.family != _socket.AF_UNIX:
            link.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        self._client = Client(link, self._wake)

    def close(self) -> None:
        """Hang up and listen no more. Not from an action of the guest's; idempotent."""
        if self._closing:
            return
        self._closing = True
        self._wake()
        self._thread.join()
        self.nudge()
        if self._client is not None:
            self._client.end("the server is closed")
            self._client.close()
        self._listener.close()
        os.close(self._wake_fd)
        take_away(self.address.path, self._file)


def _listen(address: GdbAddress) -> tuple[Any, GdbAddress]:
    """The listening socket, and its address with the port that it has got."""
    import _socket

    if address.kind != TCP:
        return listen(address.path, "gdb socket"), address
    family = _socket.AF_INET6 if ":" in address.host else _socket.AF_INET
    listener = _socket.socket(family, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        listener.bind((address.host, address.port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
        return listener, address.replace(port=listener.getsockname()[1])
    except OSError as error:
        listener.close()
        raise HostError(
            f"cannot listen for gdb at {address}: {error.strerror}",
            "choose another port, or a socket's path",
        ) from error
