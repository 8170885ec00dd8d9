"""Code bytes of the guest's that software breakpoints replace while it runs.

They are put in before the guest runs, and taken out when somebody looks at its memory without
copying; a copy never shows them. Where the guest has written its own bytes over one meanwhile, the
guest's count.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmm._native.memory.guestmem import GuestMemory

LENGTH_MAX = 2
RENEWED_MAX = 256


class Patch:
    """``code`` in place of what stands at ``gpa``; ``original`` while it is in."""

    __slots__ = ("code", "gpa", "original", "users")

    def __init__(self, gpa: int, code: bytes) -> None:
        self.gpa = gpa
        self.code = code
        self.original: bytes | None = None
        self.users = 0


class Patches:
    """All patches of a guest, by gpa. The thread that drives the guest."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._by_gpa: dict[int, Patch] = {}
        self._places: list[int] = []
        # Those that are not in the guest's memory.
        self._out: set[Patch] = set()
        self._seen = False

    def fits(self, gpa: int, code: bytes) -> bool:
        """It would overlap no other one; the same one may stand there."""
        own = self.at(gpa)
        if own is not None:
            return own.code == code
        return all(p.gpa + len(p.code) <= gpa for p in self._inside(gpa, len(code)))

    def add(self, gpa: int, code: bytes) -> Patch:
        """A patch that goes in with the next put(); one of the same place is shared."""
        patch = self.at(gpa)
        if patch is None:
            patch = self._by_gpa[gpa] = Patch(gpa, code)
            insort(self._places, gpa)
            self._out.add(patch)
        patch.users += 1
        return patch

    def remove(self, patch: Patch) -> None:
        """Take it out, for good with the last one that uses it."""
        patch.users -= 1
        if patch.users:
            return
        self.take_out(patch)
        self._out.discard(patch)
        del self._by_gpa[patch.gpa]
        self._places.pop(bisect_left(self._places, patch.gpa))

    def put(self) -> None:
        """Put all in, before the guest runs; those that it has written over as well.

        Where there are many, those stay out: looking at each would cost every hit too much.
        """
        if len(self._by_gpa) <= RENEWED_MAX:
            for patch in self._by_gpa.values():
                if patch.original is not None and self._is_overwritten(patch):
                    self.take_out(patch)
        # In an order that Ctrl-C may come in between: done again, it is right.
        for patch in self._out:
            if patch.original is None:
                patch.original = self._memory.read(patch.gpa, len(patch.code))
            self._memory.write(patch.gpa, patch.code)
        self._out.clear()

    def _is_overwritten(self, patch: Patch) -> bool:
        return self._memory.read(patch.gpa, len(patch.code)) != patch.code

    def take_out(self, patch: Patch) -> None:
        """One of them; what the guest wrote over it stays."""
        original = patch.original
        self._out.add(patch)
        if original is None:
            return
        now = self._memory.read(patch.gpa, len(patch.code))
        kept = bytes(
            [o if n == c else n for n, c, o in zip(now, patch.code, original, strict=True)]
        )
        if kept != now:
            self._memory.write(patch.gpa, kept)
        patch.original = None

    def take_all_out(self) -> None:
        """Leave the guest's memory as the guest has it."""
        if len(self._out) < len(self._by_gpa):
            for patch in self._by_gpa.values():
                self.take_out(patch)

    def forget(self) -> None:
        """All of the guest's memory was replaced: there are none any more."""
        self._by_gpa.clear()
        self._places.clear()
        self._out.clear()

    def show_memory(self) -> None:
        """Somebody looks without copying, from now on: stand_still() takes everything out."""
        self._seen = True
        self.take_all_out()

    def stand_still(self) -> None:
        """The guest stands still and its user may look."""
        if self._seen:
            self.take_all_out()

    def lift(self, gpa: int, length: int) -> None:
        """Take out what stands in [gpa, gpa + length): somebody writes there."""
        for patch in self._inside(gpa, length):
            self.take_out(patch)

    def read(self, gpa: int, length: int) -> bytes:
        """The guest's memory as the guest has it."""
        return self.hide(gpa, self._memory.read(gpa, length))

    def hide(self, gpa: int, data: bytes) -> bytes:
        """``data``, read at ``gpa``, without patches."""
        found = [p for p in self._inside(gpa, len(data)) if p.original is not None]
        if not found:
            return data
        shown = bytearray(data)
        for patch in found:
            assert patch.original is not None
            for n, (code, original) in enumerate(zip(patch.code, patch.original, strict=True)):
                place = patch.gpa + n - gpa
                if 0 <= place < len(shown) and shown[place] == code:
                    shown[place] = original
        return bytes(shown)

    def _inside(self, gpa: int, length: int) -> list[Patch]:
        first = bisect_left(self._places, gpa - LENGTH_MAX + 1)
        last = bisect_left(self._places, gpa + length)
        return [self._by_gpa[place] for place in self._places[first:last]]

    def at(self, gpa: int) -> Patch | None:
        """The patch that begins there."""
        return self._by_gpa.get(gpa)
