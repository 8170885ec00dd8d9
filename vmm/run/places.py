"""Where instances may be: this user's own place, the service's, and for root those of all users."""

from __future__ import annotations

import os

from vmm.errors import ConfigError, HostError, UnknownInstanceError
from vmm.light.printable import visible
from vmm.run.folder import FOLDER_FLAGS, Folder
from vmm.run.instance import FOLDER, LOCK, runtime_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

RUN = "/run"
# The system unit's folder in it, with one for each instance, which has a user of its own.
SERVICE = "vllmd"
# Of a place of others no more names are looked at, and of all no more told.
NAMES_MAX = 1000
TOLD_MAX = 20
NAME_MAX = 100


def name_meant(environment: Mapping[str, str], name: str | None) -> str | None:
    """The name given, or that of the environment; None where it has none."""
    from vmm.settings.config import PREFIX, identity

    if name:
        # Refuses what cannot be a name, and takes off what a setting is freed of, too.
        name = identity({f"{PREFIX}NAME": name})[0] or name
    elif name is None:
        from vmm.run.instance import name_from_image

        name, image = identity(environment)
        if name is None and image is not None:
            name = name_from_image(image)
    return name


class Places:
    """What this user may look into. ``hidden`` are the places that he may not."""

    def __init__(self, environment: Mapping[str, str], run: str = RUN) -> None:
        # Place and name of each instance, own ones first.
        self.known: list[tuple[str, str]] = []
        self.hidden: list[str] = []
        self._places: list[str] = []
        try:
            self.own = runtime_directory(environment)
        except HostError:
            self.own = ""  # there is no such place, so nothing is in it
        seen: set[tuple[int, int]] = set()
        for place in _places(self.own, run, self.hidden):
            try:
                found = os.stat(place, follow_symlinks=False)
                if (found.st_dev, found.st_ino) not in seen:
                    seen.add((found.st_dev, found.st_ino))
                    self.known += [(place, name) for name in _names(place)]
                    self._places.append(place)
            except PermissionError:
                self.hidden.append(place)
            except OSError:
                continue

    def find(self, name: str | None) -> Folder:
        """The instance meant: among those of one name the first that runs, own ones first.

        None means the only own one. UnknownInstanceError tells which are known.
        """
        if name is None:
            place, name = self._only()
            found = [Folder(place, name)]
        else:
            found = [*self._named(name)]
        if not found:
            raise self.unknown(name)
        meant = next((folder for folder in found if folder.running), found[0])
        for folder in found:
            if folder is not meant:
                folder.close()
        return meant

    def _named(self, name: str) -> Iterator[Folder]:
        if "/" in name or name in ("", ".", ".."):
            return
        for place in self._places:
            try:
                yield Folder(place, name)
            except (OSError, ValueError):
                continue

    def _only(self) -> tuple[str, str]:
        own = [entry for entry in self.known if entry[0] == self.own]
        if len(own) == 1:
            return own[0]
        raise ConfigError(
            [
                "which instance? give its name, or set VLLMD_HYPERVISOR_NAME or "
                f"VLLMD_HYPERVISOR_SYSTEM_IMAGE_FILEPATH; {self.told()}"
            ]
        )

    def unknown(self, name: str) -> UnknownInstanceError:
        """The error for a name that no instance has."""
        return UnknownInstanceError(
            f"no instance {visible(name, NAME_MAX)!r} is known; {self.told()}"
        )

    def told(self) -> str:
        """The names that there are, and where nobody looked."""
        names = [
            visible(name if place == self.own else f"{place}/{name}")
            for place, name in self.known[:TOLD_MAX]
        ]
        names += ["..."] if len(self.known) > TOLD_MAX else []
        text = f"known: {', '.join(names) or 'none'}"
        if self.hidden:
            text += f"; no permission to look into {', '.join(self.hidden)} (root may)"
        return text


def _names(place: str) -> list[str]:
    """The names in a place that have a lock, as far as a sane place has them."""
    at = os.open(place, FOLDER_FLAGS)
    try:
        return [name for name in sorted(os.listdir(at))[:NAMES_MAX] if _has_lock(at, name)]
    finally:
        os.close(at)


def _has_lock(at: int, name: str) -> bool:
    try:
        os.stat(f"{name}/{LOCK}", dir_fd=at, follow_symlinks=False)
    except OSError:
        return False
    return True


def _places(own: str, run: str, hidden: list[str]) -> list[str]:
    """Folders of instances, whether they exist or not, in the order in which they are asked.

    Adds to ``hidden`` what may not be listed.
    """
    bases = [run, f"{run}/{SERVICE}", *_services(f"{run}/{SERVICE}", hidden)]
    if os.geteuid() == 0:
        try:
            bases += [f"{run}/user/{uid}" for uid in sorted(os.listdir(f"{run}/user"))]
        except OSError:
            bases.append(f"{run}/user/0")
    else:
        bases.append(f"{run}/user/{os.geteuid()}")
    return ([own] if own else []) + [f"{base}/{FOLDER}" for base in bases]


def _services(base: str, hidden: list[str]) -> list[str]:
    """The service's folders, one for each instance; none where others than root make them.

    Each belongs to a user of its own, who cannot put a link in its place.
    """
    try:
        if os.stat(base, follow_symlinks=False).st_uid not in (0, os.geteuid()):
            return []
        return [f"{base}/{name}" for name in sorted(os.listdir(base))[:NAMES_MAX] if name != FOLDER]
    except PermissionError:
        hidden.append(base)
    except OSError:
        pass  # the service has never run here
    return []
