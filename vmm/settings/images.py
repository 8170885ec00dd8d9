"""The lists of disk images: ``path[,format=raw][,serial=TEXT]...``, comma separated. Pure."""

from __future__ import annotations

from vmm.light.record import Record
from vmm.settings.parse import (
    BadValue,
    check_path,
    list_parts,
    nearest,
    parse_switch,
    split_list,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

FORMATS = ("raw",)
# VIRTIO_BLK_ID_BYTES (virtio 1.2, 5.2.6).
SERIAL_MAX = 20
KEY_CHARACTERS = "abcdefghijklmnopqrstuvwxyz_"
IMAGES_FORM = (
    "paths, comma separated (double quotes protect a comma), behind each where wanted format=raw, "
    "serial=TEXT, direct=on"
)


class ImageSpec(Record):
    """One disk image as it was given; can be used as a path.

    ``format`` is raw when it was said, so that the content does not matter, else None; ``serial``
    is what the guest shall see, None for one made from the file. ``direct``: past the host's page
    cache; None is as off.
    """

    __slots__ = ("direct", "format", "path", "serial")
    path: str
    format: str | None
    serial: str | None
    direct: bool | None

    def __init__(
        self,
        path: str,
        format: str | None = None,
        serial: str | None = None,
        direct: bool | None = None,
    ) -> None:
        self._set(path=path, format=format, serial=serial, direct=direct)

    def __fspath__(self) -> str:
        return self.path

    def __str__(self) -> str:
        return self.path


def parse_images(text: str) -> tuple[ImageSpec, ...]:
    """One or more images; BadValue tells what is wrong with each of them.

    An item ``key=value`` behind a path belongs to it. A path of that form stands in quotes.
    """
    images: list[ImageSpec] = []
    wrong: list[str] = []
    for item, part in zip(split_list(text), list_parts(text), strict=True):
        key = _key(part)
        try:
            if key is None or (not images and key not in KEYS):
                # Added before it is checked: what stands behind a bad path is its own all the same.
                images.append(ImageSpec(item))
                check_path(item)
            else:
                images[-1:] = [_add(images, key, item.strip().partition("=")[2].strip())]
        except BadValue as error:
            wrong.append(str(error))
    if wrong:
        raise BadValue("; ".join(wrong))
    return tuple(images)


def _key(part: str) -> str | None:
    """The key that an item of the list begins with, None for a path: a quoted one has none."""
    word, separator, _ = part.partition("=")
    word = word.strip()
    is_key = separator and word and all(one in KEY_CHARACTERS for one in word)
    return word if is_key else None


def _add(images: list[ImageSpec], key: str, value: str) -> ImageSpec:
    """The last image with one more word about it."""
    if not images:
        raise BadValue(f"{key}={value} belongs behind a path; a path of that form needs quotes")
    if key not in KEYS:
        near = nearest(key, list(KEYS))
        raise BadValue(f"unknown key {key!r}{near}; a path of that form needs double quotes")
    if getattr(images[-1], key) is not None:
        raise BadValue(f"{key} is given twice for {images[-1]}")
    return images[-1].replace(**{key: KEYS[key](value)})


def check_format(value: str) -> str:
    """The only one there is."""
    if value not in FORMATS:
        raise BadValue(f"format={value}: raw is the only one; qemu-img convert -O raw makes it")
    return value


def check_serial(value: str) -> str:
    """What fits into the guest's 20 bytes, and into udev's names."""
    if not 1 <= len(value) <= SERIAL_MAX or not all("!" <= char <= "~" for char in value):
        raise BadValue(
            f"serial={value}: 1 to {SERIAL_MAX} printable ASCII characters without blanks"
        )
    return value


def check_direct(value: str) -> bool:
    """On or off."""
    try:
        return parse_switch(value)
    except BadValue as error:
        raise BadValue(f"direct={error}") from None


KEYS: dict[str, Callable[[str], object]] = {
    "format": check_format,
    "serial": check_serial,
    "direct": check_direct,
}
