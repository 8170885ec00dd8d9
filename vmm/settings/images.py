"""The lists of disk images: ``path[,format=raw][,serial=TEXT]...``, comma separated. Pure."""

from __future__ import annotations

from vmm.layout import DISK_QUEUES_MAX
from vmm.light.printable import brief
from vmm.light.record import Record
from vmm.settings.parse import (
    BadValue,
    check_path,
    list_parts,
    nearest,
    parse_integer,
    parse_size,
    parse_switch,
    split_list,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

FORMATS = ("raw",)
# VIRTIO_BLK_ID_BYTES (virtio 1.2, 5.2.6).
SERIAL_MAX = 20
# Of a limit: more than any disk does, and exact as a double. Of its bucket: an hour to be full.
RATE_MAX = 1 << 50
REFILL_MS_MAX = 3_600_000
KEY_CHARACTERS = "abcdefghijklmnopqrstuvwxyz_"
IMAGES_FORM = (
    "paths, comma separated (double quotes protect a comma), behind each where wanted format=raw, "
    "serial=TEXT, direct=on, queues=NUMBER, iops=RATE, bandwidth=RATE (RATE: SIZE[/MS][+ONCE])"
)


class Rate(Record):
    """So much in each ``refill_ms`` milliseconds, and ``once`` more before that counts."""

    __slots__ = ("once", "refill_ms", "size")
    size: int
    refill_ms: int
    once: int

    def __init__(self, size: int, refill_ms: int = 1000, once: int = 0) -> None:
        self._set(size=size, refill_ms=refill_ms, once=once)


class ImageSpec(Record):
    """One disk image as it was given; can be used as a path.

    ``format`` is raw when it was said, so that the content does not matter, else None; ``serial``
    is what the guest shall see, None for one made from the file. ``direct``: past the host's page
    cache; None is as off. ``iops``, ``bandwidth``: limits of requests and of bytes. ``queues``:
    request queues at most, None for layout.DISK_QUEUES.
    """

    __slots__ = ("bandwidth", "direct", "format", "iops", "path", "queues", "serial")
    path: str
    format: str | None
    serial: str | None
    direct: bool | None
    iops: Rate | None
    bandwidth: Rate | None
    queues: int | None

    def __init__(
        self,
        path: str,
        format: str | None = None,
        serial: str | None = None,
        direct: bool | None = None,
        iops: Rate | None = None,
        bandwidth: Rate | None = None,
        queues: int | None = None,
    ) -> None:
        self._set(
            path=path, format=format, serial=serial, direct=direct, iops=iops,
            bandwidth=bandwidth, queues=queues,
        )  # fmt: skip

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
        told = f"{key}={brief(value)}"
        raise BadValue(f"{told} belongs behind a path; a path of that form needs quotes")
    if key not in KEYS:
        near = nearest(key, list(KEYS))
        raise BadValue(f"unknown key {key!r}{near}; a path of that form needs double quotes")
    if getattr(images[-1], key) is not None:
        raise BadValue(f"{key} is given twice for {brief(str(images[-1]))}")
    return images[-1].replace(**{key: KEYS[key](value)})


def check_format(value: str) -> str:
    """The only one there is."""
    if value not in FORMATS:
        told = f"format={brief(value)}"
        raise BadValue(f"{told}: raw is the only one; qemu-img convert -O raw makes it")
    return value


def check_serial(value: str) -> str:
    """What fits into the guest's 20 bytes, and into udev's names."""
    if not 1 <= len(value) <= SERIAL_MAX or not all("!" <= char <= "~" for char in value):
        raise BadValue(
            f"serial={brief(value)}: 1 to {SERIAL_MAX} printable ASCII characters without blanks"
        )
    return value


def check_direct(value: str) -> bool:
    """On or off."""
    try:
        return parse_switch(value)
    except BadValue as error:
        raise BadValue(f"direct={error}") from None


def check_queues(value: str) -> int:
    """Each is a thread of ours, an interrupt and a doorbell."""
    try:
        return parse_integer(value, 1, DISK_QUEUES_MAX)
    except BadValue as error:
        raise BadValue(f"queues={error}") from None


def check_iops(value: str) -> Rate:
    """Requests, of whatever kind and size."""
    return _rate("iops", value)


def check_bandwidth(value: str) -> Rate:
    """Bytes read and written."""
    return _rate("bandwidth", value)


def _rate(key: str, value: str) -> Rate:
    """``SIZE[/MS][+ONCE]``: 500, 100M/100, 1000+50000."""
    steady, plus, once = value.partition("+")
    size, slash, milliseconds = steady.partition("/")
    try:
        rate = Rate(
            parse_size(size),
            parse_integer(milliseconds, 1, REFILL_MS_MAX) if slash else 1000,
            parse_size(once) if plus else 0,
        )
    except BadValue as error:
        raise BadValue(f"{key}={brief(value)}: {error}; the form is SIZE[/MS][+ONCE]") from None
    if not 0 < rate.size <= RATE_MAX or rate.once > RATE_MAX:
        raise BadValue(
            f"{key}={brief(value)}: 1 to {RATE_MAX} is possible; leave it out for no limit"
        )
    return rate


KEYS: dict[str, Callable[[str], object]] = {
    "format": check_format,
    "serial": check_serial,
    "direct": check_direct,
    "queues": check_queues,
    "iops": check_iops,
    "bandwidth": check_bandwidth,
}
