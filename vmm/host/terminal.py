"""The terminal that `start` was typed on: raw while the guest has it, given back in every case."""

from __future__ import annotations

import os

from vmm._native.console import terminal
from vmm.host.keys import KEYS
from vmm.log.stream import is_terminal, open_anew

HVC0 = "the console (hvc0)"
TTYS0 = "the serial port (ttyS0)"


class Terminal:
    """stdin, as a terminal. Control thread.

    ``fd`` is to be read from, and does not wait where it could be opened anew. It is raw from
    take() to close(), except while another job has the terminal.
    """

    keys_told = "Ctrl-A x presses the guest's power button, Ctrl-A h lists all keys"
    background_told = (
        "this job is in the background: what is typed reaches the guest once it is in the "
        "foreground (fg)"
    )

    def __init__(self) -> None:
        own = open_anew(0, os.O_RDWR)
        self.fd = 0 if own < 0 else own
        self._own = own
        self._saved: bytes | None = None
        self._hooked = False

    @property
    def help_text(self) -> bytes:
        """What Ctrl-A h shows."""
        rows = [f"  {key:14} {meaning}" for key, meaning in KEYS]
        return "\n".join(["", *rows, ""]).encode()

    @property
    def notice_fd(self) -> int:
        """Where to answer keys when the guest's output goes elsewhere; -1: with the output."""
        return -1 if is_terminal(1) else self._own

    def take(self) -> bool:
        """Switch to raw mode; False when another job has the terminal for now."""
        if not terminal.in_foreground(self.fd):
            return False
        try:
            saved = terminal.set_raw(self.fd)
        except OSError:
            return True  # it has hung up
        if self._saved is None:
            self._saved = saved
        if not self._hooked:
            import atexit

            self._hooked = True
            atexit.register(self.restore)
        return True

    def restore(self) -> None:
        """Give it back as it was; idempotent. Another job's modes, and one that is gone, stay."""
        saved, self._saved = self._saved, None
        if saved is not None and terminal.in_foreground(self.fd):
            try:
                terminal.restore(self.fd, saved)
            except OSError:
                return

    def close(self) -> None:
        """Give it back, and let go of it; idempotent."""
        self.restore()
        if self._own >= 0:
            os.close(self._own)
            self._own = self.fd = -1


def input_told(name: str) -> str:
    """Who gets what is typed, where two consoles share the terminal."""
    return f"what is typed goes to {name}; Ctrl-A c switches"


def serial_has_input(cmdline: str) -> bool:
    """Of two consoles on one terminal: whether the serial port has the input at first.

    Linux reads from the last ``console=`` of its command line. Without one the serial port has it:
    it is there only because somebody asked for it, and firmwares know no other console.
    """
    ends = [word[8:].partition(",")[0] for word in cmdline.split() if word.startswith("console=")]
    known = [end for end in ends if end in ("hvc0", "ttyS0")]
    return not known or known[-1] == "ttyS0"
