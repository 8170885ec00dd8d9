"""Tells systemd how the service does: sd_notify(3) over the socket in NOTIFY_SOCKET."""

from __future__ import annotations


class Notifier:
    """Sends state to the service manager; without a socket it does nothing. Control thread."""

    def __init__(self, address: str = "") -> None:
        # A leading @ stands for the NUL byte of an abstract socket.
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def send(self, **fields: object) -> None:
        """Send ``NAME=value`` lines; a manager that does not listen is no error."""
        if not self._address:
            return
        import _socket

        text = "\n".join([f"{name}={value}" for name, value in fields.items()])
        kind = _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
        link = _socket.socket(_socket.AF_UNIX, kind)
        try:
            link.sendto(text.encode(), self._address)
        except OSError:
            return
        finally:
            link.close()

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self.send(STATUS=text)
