"""The consoles that a script holds: text both ways, and waiting for words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vmm._native.console.keptport import KeptPort
from vmm.light.shown import Shown

if TYPE_CHECKING:
    from collections.abc import Callable

    Text = bytes

# A pattern is looked for in so much of what came before, for the part that is already there.
OVERLAP = 4096
TAIL_SHOWN = 200


class KeptConsole(Shown):
    """One console of a guest, kept in memory; any thread may call.

    ``text`` and ``bytes`` are what the guest wrote (the newest 16 MiB), ``write()`` is typing.
    """

    terminal = None

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = KeptPort()
        self._seen = 0
        # Lets the guest run until the function says so: (found, seconds) -> None. Set by Guest.
        self.run_until: Callable[[Callable[[], bool], float | None], None] | None = None

    def size(self) -> tuple[int, int]:
        """No terminal shows it."""
        return 0, 0

    @property
    def bytes(self) -> Text:
        """All that is kept of what the guest wrote."""
        return self.port.window()[1]

    @property
    def text(self) -> str:
        """The same as text; what is no UTF-8 shows as U+FFFD."""
        return self.bytes.decode("utf-8", "replace")

    @property
    def lost(self) -> int:
        """Bytes of the oldest that are kept no more."""
        return self.port.dropped

    def write(self, text: str | Text) -> None:
        """Type it, as far as the guest takes it; the rest waits until it does."""
        self.port.type(text.encode() if isinstance(text, str) else text)

    def expect(self, pattern: str | Text, seconds: float | None = None) -> re.Match[Text]:
        """Wait until ``pattern`` (a regular expression) comes, behind what was expected before.

        A match is at most 4096 bytes long. A guest that stands still runs meanwhile and stands
        still again. TimeoutError shows the end of what came; the guest's end is an error, too.
        """
        try:
            regex = re.compile(pattern.encode() if isinstance(pattern, str) else pattern)
        except re.error as error:
            raise ValueError(f"{self.name}: no pattern {pattern!r}: {error}") from None
        found: list[re.Match[Text]] = []
        start = self._seen
        looked = [start]

        def look() -> bool:
            self.port.arm()
            begin, data = self.port.window(max(start, looked[0] - OVERLAP))
            match = regex.search(data)
            looked[0] = begin + len(data)
            if match is None:
                return False
            self.port.arm(False)
            found.append(match)
            self._seen = begin + match.end()
            return True

        if not look():
            if self.run_until is None:
                raise RuntimeError(f"{self.name}: its guest is closed")
            self.run_until(look, seconds)
        if not found:
            shown = self.bytes[-TAIL_SHOWN:].decode("utf-8", "replace")
            raise TimeoutError(
                f"{self.name}: {pattern!r} did not come"
                + ("" if seconds is None else f" within {seconds:g} s")
                + f"; the end of what came: {shown!r}"
            )
        return found[0]

    def close(self) -> None:
        """Let nobody wait for it any more; what was written stays readable. Idempotent."""
        self.run_until = None
        self.port.attend(None)
        self.port.close()

    def __repr__(self) -> str:
        return f"<{self.name}: {self.port.end} bytes, the end {self.bytes[-40:]!r}>"
