"""Where software breakpoints stand, by linear address, and the patches in the guest's code there.

A page may be mapped at several addresses: whoever stops at a patch by another one of them has hit
nothing, but has to get past it as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.debug.points import STEP

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.debug.patches import Patch, Patches
    from vmm.debug.points import Point

    Translate = Callable[[int], int | None]

# The guest chooses how many addresses it has for a page: those of a while ago are found out anew.
ALIASES_MAX = 64


class Site:
    """One address that a software breakpoint, or several, stand at."""

    def __init__(self, address: int, kind: str) -> None:
        self.address = address
        self.kind = kind
        self.points: list[Point] = []
        self.patch: Patch | None = None

    @property
    def enabled(self) -> bool:
        """Some of its points are."""
        return any(point.enabled for point in self.points)


class Sites:
    """All of a guest's. The thread that drives it, while the guest stands still."""

    def __init__(self, patches: Patches, code_of: Callable[[str], bytes]) -> None:
        """``code_of`` a kind of breakpoint: the bytes that are put into the guest's code."""
        self._patches = patches
        self._code_of = code_of
        self._by_address: dict[int, Site] = {}
        # Addresses whose patches have to be looked at.
        self._todo: set[int] = set()
        # gpas of patches that went since the guest ran: other vCPUs may have stopped there, too.
        self._gone: set[int] = set()
        self._aliases: dict[int, Patch] = {}
        # Taken out from under a vCPU that steps: what it meets there now is the guest's own.
        self._lifted: Patch | None = None
        self.kinds: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._by_address)

    def __contains__(self, address: int) -> bool:
        return address in self._by_address

    def at(self, address: int) -> Site | None:
        """The one at a linear address."""
        return self._by_address.get(address)

    def make(self, address: int, kind: str) -> Site:
        """A new one."""
        site = self._by_address[address] = Site(address, kind)
        return site

    def drop(self, point: Point) -> None:
        """Without this point; the last one takes the site with it."""
        site = self._by_address[point.address]
        site.points.remove(point)
        if not site.points:
            self._unpatch(site)
            del self._by_address[point.address]

    def changed(self, address: int) -> None:
        """Look at its patch before the guest runs."""
        self._todo.add(address)

    def restored(self) -> None:
        """The guest got another memory, in which no patch is: all are made anew."""
        self._aliases.clear()
        self._gone.clear()
        self._lifted = None
        for site in self._by_address.values():
            site.patch = None
        self._todo.update(self._by_address)

    # --- before the guest runs ---

    def bring_up(self, translate: Translate) -> None:
        """Put patches where points are enabled, and take away those of others."""
        self._gone.clear()
        self._lifted = None
        if self._todo:
            self._todo = {each for each in self._todo if not self._patch(each, translate)}
            self.kinds = {site.kind for site in self._by_address.values() if site.enabled}

    def _patch(self, address: int, translate: Translate) -> bool:
        """Bring a site's patch up to date; False when its page is not there yet."""
        site = self._by_address.get(address)
        if site is None or site.kind == STEP:
            return True
        if not site.enabled:
            self._unpatch(site)
        elif site.patch is None:
            gpa = translate(address)
            code = self._code_of(site.kind)
            if gpa is None or not self._patches.fits(gpa, code):
                return False
            site.patch = self._patches.add(gpa, code)
        return True

    def _unpatch(self, site: Site) -> None:
        if site.patch is not None:
            self._gone.add(site.patch.gpa)
            self._patches.remove(site.patch)
            site.patch = None
            self._aliases.clear()

    # --- when a vCPU has stopped ---

    def hits(self, address: int, translate: Translate) -> list[Point] | None:
        """The points at which a vCPU has stopped by executing a patch at a linear address.

        Empty where there was one, or is one by another address; None: these bytes are the guest's.
        """
        patch = self.under(address)
        if patch is not None:
            site = self.at(address)
            mine = patch is not self._lifted
            return None if not mine else [] if site is None else list(site.points)
        gpa = translate(address)
        patch = None if gpa is None else self._patches.at(gpa)
        if patch is None:
            return [] if gpa in self._gone else None
        if patch is self._lifted:
            return None
        if len(self._aliases) >= ALIASES_MAX:
            self._aliases.clear()
        self._aliases[address] = patch
        return []

    def under(self, address: int) -> Patch | None:
        """The patch that whoever goes on there would execute."""
        site = self._by_address.get(address)
        return self._aliases.get(address) if site is None else site.patch

    def lift(self, address: int) -> None:
        """Take out what a vCPU stands on, for a single step of it alone."""
        self._lifted = self.under(address)
        if self._lifted is not None:
            self._patches.take_out(self._lifted)
