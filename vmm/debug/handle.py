"""What breakpoints and hooks have in common as a script holds them."""

from __future__ import annotations

from vmm.light.shown import Shown


class Handle(Shown):
    """Can be switched off and on (``enabled``), and taken away for good.

    The thread that drives the guest. Subclasses say what either means.
    """

    def __init__(self) -> None:
        self.removed = False
        self._enabled = True

    @property
    def enabled(self) -> bool:
        """Whether it acts."""
        return self._enabled and not self.removed

    @enabled.setter
    def enabled(self, wanted: bool) -> None:
        self._enabled = bool(wanted)
        self._switched()

    def remove(self) -> None:
        """Take it away. Idempotent; actions and hooks may call it, too."""
        if not self.removed:
            self.removed = True
            self._gone()

    @property
    def _state(self) -> str:
        """For its repr: nothing while it acts."""
        return ", removed" if self.removed else "" if self._enabled else ", disabled"

    def _switched(self) -> None:
        raise NotImplementedError

    def _gone(self) -> None:
        raise NotImplementedError
