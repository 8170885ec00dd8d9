"""Small grammars of the settings: sizes, switches, lists, console ends, devices. Pure."""

from __future__ import annotations

import os

from vmm.light.printable import brief, quote
from vmm.light.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    Value = TypeVar("Value")

SIZE_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
TRUE_WORDS = ("on", "true", "yes", "1")
FALSE_WORDS = ("off", "false", "no", "0")
ENDPOINT_FORM = "tty, null, pty, socket=PATH or file=PATH[,max=SIZE][,keep=COUNT]"
# What a console's file may grow to, how many full ones are kept beside it, and the least that
# makes sense of the first; max=0 means no limit.
FILE_MAX_DEFAULT = 64 << 20
FILE_MAX_LEAST = 64 << 10
FILE_KEEP_DEFAULT = 1
FILE_KEEP_MOST = 99
DEVICE_FORM = (
    "/dev/vfio/N, /dev/vfio/devices/vfioN, /sys/bus/pci/devices/DDDD:BB:DD.F, DDDD:BB:DD.F or "
    "BB:DD.F"
)
SIZE_FORM = "a number of bytes, or one with K, M, G or T (powers of 1024)"
HEX_DIGITS = "0123456789abcdefABCDEF"
# Domains have four digits; those that a driver makes up (Intel's VMD) have five and more.
DOMAIN_DIGITS_MAX = 8
# More digits than any number here has; int() refuses thousands of them with an error of its own.
DIGITS_MAX = 20
FILE_DIGITS_MAX = 9


class BadValue(ValueError):
    """A value that is not of the accepted form; the text says what is wrong with it."""


class Endpoint(Record):
    """Where a guest console goes: ``kind`` tty, null, pty, file or socket, and its path.

    A file of more than ``max_bytes`` (0: no limit) becomes PATH.1; ``keep`` such files stay.
    """

    __slots__ = ("keep", "kind", "max_bytes", "path")
    kind: str
    path: str
    max_bytes: int
    keep: int

    def __init__(
        self,
        kind: str,
        path: str = "",
        max_bytes: int = FILE_MAX_DEFAULT,
        keep: int = FILE_KEEP_DEFAULT,
    ) -> None:
        self._set(kind=kind, path=path, max_bytes=max_bytes, keep=keep)


class DeviceSpec(Record):
    """A device to pass through: ``form`` group, cdev, sysfs or bdf, and the value given."""

    __slots__ = ("form", "value")
    form: str
    value: str

    def __init__(self, form: str, value: str) -> None:
        self._set(form=form, value=value)


def parse_size(text: str) -> int:
    """Bytes from ``512M`` and the like; units in any case."""
    digits = text.strip()
    unit = ""
    if digits and digits[-1].upper() in "KMGT":
        unit = digits[-1].upper()
        digits = digits[:-1]
    if not is_decimal(digits):
        raise BadValue(f"{quote(text)} is not a size: {SIZE_FORM}")
    return int(digits) * SIZE_UNITS[unit]


def is_decimal(text: str, most: int = DIGITS_MAX) -> bool:
    """True for ASCII digits alone, and no more of them than ``most``."""
    return text.isascii() and text.isdigit() and len(text) <= most


def parse_switch(text: str) -> bool:
    """on/true/yes/1 or off/false/no/0, in any case."""
    word = text.strip().lower()
    if word in TRUE_WORDS:
        return True
    if word in FALSE_WORDS:
        return False
    raise BadValue(f"{quote(text)} is neither on nor off (on, true, yes, 1; off, false, no, 0)")


def parse_integer(text: str, low: int, high: int) -> int:
    """A decimal integer in a range."""
    digits = text.strip()
    if not is_decimal(digits) or not low <= int(digits) <= high:
        raise BadValue(f"{quote(text)} is not a whole number from {low} to {high}")
    return int(digits)


def parse_seconds(text: str) -> float:
    """A number of seconds from 0 to a day, with a decimal point or without."""
    digits = text.strip()
    # float() would take more: exponents, underscores, the digits of other scripts.
    value = float(digits) if is_decimal(digits.replace(".", "", 1)) else -1.0
    if not 0 <= value <= 86400:
        raise BadValue(f"{quote(text)} is not a number of seconds from 0 to 86400")
    return value


def split_list(text: str) -> tuple[str, ...]:
    """Items separated by commas; double quotes protect commas and blanks at an item's ends."""
    items = [_item(part) for part in list_parts(text)]
    if any(not item.strip() for item in items):
        raise BadValue("an item of the list is empty")
    return tuple(items)


def list_parts(text: str) -> list[str]:
    """What stands between the commas that no double quotes protect."""
    parts: list[str] = []
    start = 0
    quoted = False
    for place, char in enumerate(text):
        if char == '"':
            quoted = not quoted
        elif char == "," and not quoted:
            parts.append(text[start:place])
            start = place + 1
    if quoted:
        raise BadValue("a double quote is not closed")
    return [*parts, text[start:]]


def _item(part: str) -> str:
    """Without the blanks around it, then without its quotes."""
    return part.strip().replace('"', "")


def parse_each(items: Sequence[str], parse: Callable[[str], Value]) -> tuple[Value, ...]:
    """All items parsed; BadValue tells what is wrong with each of them, not only the first."""
    values = []
    wrong = []
    for item in items:
        try:
            values.append(parse(item))
        except BadValue as error:
            wrong.append(str(error))
    if wrong:
        raise BadValue("; ".join(wrong))
    return tuple(values)


def check_path(path: str) -> str:
    """Refuse what people mean to be expanded and nobody expands."""
    if "\0" in path:
        raise BadValue("a path cannot contain a NUL character")
    if "$" in path:
        raise BadValue(
            f"{quote(path)} contains '$': variables are not expanded here; write the path out"
        )
    if path.startswith(("%h", "%i")):
        raise BadValue(
            f"{quote(path)} starts with {path[:2]!r}: systemd expands it in units, not in the "
            "content of an EnvironmentFile; write the path out"
        )
    if path.startswith("~"):
        raise BadValue(
            f"{quote(path)} starts with '~': it is not expanded here; write the path out"
        )
    return path


def parse_paths(text: str) -> tuple[str, ...]:
    """One or more paths, comma separated."""
    return parse_each(split_list(text), check_path)


def parse_endpoint(text: str) -> Endpoint:
    """The host's end of a console; double quotes protect a comma in a path."""
    kind, separator, rest = text.strip().partition("=")
    if kind in ("tty", "null", "pty") and not separator:
        return Endpoint(kind)
    if kind not in ("file", "socket") or not rest:
        raise BadValue(f"{quote(text)} is not {ENDPOINT_FORM}")
    path, *options = split_list(rest)
    if options and kind == "socket":
        raise BadValue(
            f"{quote(options[0])}: a socket takes no options (quote a path with a comma)"
        )
    return Endpoint(kind, check_path(path), **_file_options(options))


def _file_options(options: Sequence[str]) -> dict[str, int]:
    """``max_bytes`` and ``keep``, as far as they are given."""
    found: dict[str, int] = {}
    for option in options:
        name, separator, value = option.strip().partition("=")
        field = {"max": "max_bytes", "keep": "keep"}.get(name)
        if field is None or not separator:
            raise BadValue(
                f"{quote(option)} is neither max=SIZE nor keep=COUNT (quote a path's comma)"
            )
        if field in found:
            raise BadValue(f"{name} is given twice")
        found[field] = (
            parse_integer(value, 0, FILE_KEEP_MOST) if name == "keep" else _file_max(value)
        )
    return found


def _file_max(text: str) -> int:
    size = parse_size(text)
    if 0 < size < FILE_MAX_LEAST:
        raise BadValue(f"max={brief(text)}: at least {FILE_MAX_LEAST >> 10}K, or 0 for no limit")
    return size


def parse_device(text: str) -> DeviceSpec:
    """One device to pass through, by form; whether it exists is checked later."""
    value = text.strip()
    if value.startswith("/dev/vfio/noiommu-"):
        raise BadValue(f"{quote(value)}: without an IOMMU the device could write all of memory")
    if value.startswith("/dev/vfio/devices/vfio") and is_decimal(value[22:], FILE_DIGITS_MAX):
        return DeviceSpec("cdev", value)
    if value.startswith("/dev/vfio/") and is_decimal(value[10:], FILE_DIGITS_MAX):
        return DeviceSpec("group", value)
    if value.startswith("/sys/") and pci_address(os.path.basename(value.rstrip("/"))):
        return DeviceSpec("sysfs", value)
    address = pci_address(value)
    if address is not None:
        return DeviceSpec("bdf", address)
    raise BadValue(f"{quote(value)} is not {DEVICE_FORM}")


def pci_address(text: str) -> str | None:
    """A PCI address as sysfs writes it, from that or lspci's short form ``01:00.0``; else None."""
    head, point, function = text.rpartition(".")
    parts = head.split(":")
    domain = parts.pop(0) if len(parts) == 3 else "0"
    if not point or [len(part) for part in (*parts, function)] != [2, 2, 1]:
        return None
    if not all(char in HEX_DIGITS for part in (domain, *parts, function) for char in part):
        return None
    if not 0 < len(domain) <= DOMAIN_DIGITS_MAX:
        return None
    return f"{int(domain, 16):04x}:{parts[0]}:{parts[1]}.{function}".lower()


def nearest(word: str, known: list[str]) -> str:
    """`` (did you mean X?)`` when something known is near, else nothing."""
    import difflib

    found = difflib.get_close_matches(word, known, 1, 0.5)
    return f" (did you mean {found[0]}?)" if found else ""
