"""A running kernel's own symbol table (kallsyms), read out of guest RAM.

Names are compressed: a byte stands for one of 256 tokens. The table of tokens has all digits one
after the other and is what the search begins with; the index behind it proves it, and everything
else is found from there. Linux 6.2 added a table, 6.4 changed their order. All of it is the
guest's: sizes are bounded, and what does not agree with itself is no symbol table.
Source: scripts/kallsyms.c and kernel/kallsyms.c of Linux 5.10, 6.1 and 6.12.
"""

from __future__ import annotations

import struct

from vmm.guest.kernelimage import KERNEL_START, PHYSICAL_ALIGN, banners, read_around
from vmm.guest.pagetables import PAGE_SIZE
from vmm.light.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.guest.kernelimage import Stretch
    from vmm.guest.pagetables import Memory

TOKENS = 256
# The tokens "0" to "9" stand at their own character codes.
DIGITS = b"\0".join([b"%d" % digit for digit in range(10)]) + b"\0"
FIRST_DIGIT = ord("0")
# kallsyms and the banner are both in .rodata; in Debian's kernels they are 3 MiB apart.
BEFORE_BANNER = 1 << 20
AFTER_BANNER = (8 << 20, 32 << 20)
TOKEN_BYTES_MAX = 512
NAME_BYTES_MAX = 512
SYMBOLS_MIN = 64
SYMBOLS_MAX = 1 << 19
NAMES_BYTES_MAX = 64 << 20
# A guest can write tables that look right up to their end: so many are looked at.
DIGITS_MAX = 64
TABLES_MAX = 2
PARSED_MAX = 8
SPAN = 256
ALIGNMENT = 8


class Layout(Record):
    """Where in the bytes the tables begin, and the number of symbols."""

    __slots__ = ("count", "markers", "names", "offsets", "relative_base", "tokens")
    tokens: tuple[bytes, ...]
    count: int
    names: int
    markers: int
    offsets: int
    relative_base: int

    def __init__(self, tokens: tuple[bytes, ...], count: int, names: int, markers: int) -> None:
        self._set(
            tokens=tokens, count=count, names=names, markers=markers, offsets=0, relative_base=0
        )


class Kallsyms:
    """The symbols in ascending order, by index; names and addresses are made when asked for.

    ``delta``: what to add to a gva of the image to have its gpa.
    """

    def __init__(self, data: bytes, layout: Layout) -> None:
        self._data = data
        self._layout = layout
        self._offsets = memoryview(data)[layout.offsets :][: 4 * layout.count].cast("i")
        # Positive offsets are absolute (per CPU) where there are negative ones, which count down
        # from the base; without these all count up from it (CONFIG_KALLSYMS_ABSOLUTE_PERCPU).
        self._down = min(self._offsets) < 0
        self._absolute = 0
        if self._down:
            self._absolute = next(n for n, value in enumerate(self._offsets) if value < 0)
        rest = self._offsets[self._absolute :].tolist()
        if rest != sorted(rest, reverse=self._down) or self.address(len(self) - 1) >= 1 << 64:
            raise ValueError("symbols that are not in order")
        self.delta = 0

    def __len__(self) -> int:
        return self._layout.count

    def address(self, index: int) -> int:
        """The address of one symbol."""
        value = self._offsets[index]
        if index < self._absolute:
            return value
        return self._layout.relative_base + (-1 - value if self._down else value)

    def index_at(self, address: int) -> int:
        """The last symbol up to ``address`` that belongs to the image; -1 for none."""
        low, high = self._absolute, len(self)
        while low < high:
            middle = (low + high) // 2
            if self.address(middle) <= address:
                low = middle + 1
            else:
                high = middle
        return low - 1 if low > self._absolute else -1

    def name(self, index: int) -> tuple[str, str]:
        """(type letter as in nm(1), name) of one symbol, from the nearest marker on."""
        layout = self._layout
        at = layout.markers + index // SPAN * 4
        at = layout.names + struct.unpack_from("<I", self._data, at)[0]
        for _ in range(index % SPAN):
            at = _skip(self._data, at)
        return _split(_expanded(self._data, at, layout.tokens)[0])

    def names(self) -> list[tuple[str, str]]:
        """(type letter, name) of every symbol, in order; ValueError where the guest cheats."""
        data, tokens, at = self._data, self._layout.tokens, self._layout.names
        found, left = [], NAMES_BYTES_MAX
        for _ in range(self._layout.count):
            name, at = _expanded(data, at, tokens)
            left -= len(name)
            if left < 0:
                raise ValueError(f"more than {NAMES_BYTES_MAX} bytes of names")
            found.append(_split(name))
        return found

    def locate(self, banner: int) -> bool:
        """Know where the image is, by the gpa of its banner; False: of another image's."""
        for index, value in enumerate(self._offsets):
            address = -1 - value if self._down else value  # without the base, which is aligned
            if not (banner - address) % PAGE_SIZE and self._is_banner(index):
                self.delta = banner - self.address(index)
                return self.delta % PHYSICAL_ALIGN == 0
        return False

    def _is_banner(self, index: int) -> bool:
        try:
            return self.name(index)[1] == "linux_banner"
        except (ValueError, IndexError, struct.error):
            return False  # a marker or a name that leads out of the table


def find(memory: Memory, stretches: list[Stretch] | None = None) -> Kallsyms | None:
    """The kernel's symbols: looked for in ``stretches`` of its image, without them in all RAM.

    None when there are none: no Linux, one built without kallsyms, or not unpacked yet.
    """
    tables: list[Kallsyms] = []
    for gpa, _ in zip(banners(memory, stretches), range(PARSED_MAX), strict=False):
        for table in tables:
            if table.locate(gpa):
                return table
        found = _around(memory, gpa)
        if found is not None and found.locate(gpa):
            return found
        tables += [found] if found is not None else []
    return None


def _around(memory: Memory, banner: int) -> Kallsyms | None:
    """The table near a banner; None where no kernel is around."""
    for reach in AFTER_BANNER:
        try:
            return parse(read_around(memory, banner, BEFORE_BANNER, reach))
        except ValueError:
            continue
    return None


def parse(data: bytes) -> Kallsyms:
    """The symbol table in a piece of a kernel's image; ValueError where there is none."""
    at, tables = -1, 0
    for _ in range(DIGITS_MAX):
        at = data.find(DIGITS, at + 1)
        if at < 0 or tables == TABLES_MAX:
            break
        try:
            table, tokens, end = _token_table(data, at)
            tables += 1
            layout = _with_offsets(data, _names_before(data, table, tokens), end)
            return Kallsyms(*_cut_out(data, layout))
        except (ValueError, IndexError, struct.error):
            continue
    raise ValueError("no symbol table")


def _cut_out(data: bytes, layout: Layout) -> tuple[bytes, Layout]:
    """The tables without what is around them."""
    first = min(layout.names, layout.offsets)
    last = max(layout.offsets, layout.markers) + 4 * layout.count
    places = {name: getattr(layout, name) - first for name in ("names", "markers", "offsets")}
    return data[first:last], layout.replace(**places)


def _token_table(data: bytes, digits: int) -> tuple[int, tuple[bytes, ...], int]:
    """(its start, its tokens, end of its index) of the table whose "0" is at ``digits``."""
    end = digits
    for _ in range(TOKENS - FIRST_DIGIT):
        end = data.index(b"\0", end, end + TOKEN_BYTES_MAX) + 1
    for index in range(_aligned(end, 2), _aligned(end, ALIGNMENT) + 1, 2):
        places = struct.unpack_from(f"<{TOKENS}H", data, index)
        start = digits - places[FIRST_DIGIT]
        if places[0] or start < 0:
            continue
        tokens = data[start:end].split(b"\0")[:TOKENS]
        if len(tokens) == TOKENS and _places(tokens) == places:
            return start, tuple(tokens), index + 2 * TOKENS
    raise ValueError("no index behind it")


def _places(tokens: list[bytes]) -> tuple[int, ...]:
    places, at = [], 0
    for token in tokens:
        places.append(at)
        at += len(token) + 1
    return tuple(places)


def _names_before(data: bytes, table: int, tokens: tuple[bytes, ...]) -> Layout:
    """Markers end where the tokens begin, names where the markers begin; their number is before."""
    at = _sequence_before(data, table)
    if not struct.unpack_from("<I", data, at - 4)[0]:
        at -= 4  # padding
    above, count = 1 << 32, 0
    while (value := struct.unpack_from("<I", data, at - 4)[0]) < above:
        at, above, count = at - 4, value, count + 1
        if not value or count > SYMBOLS_MAX // SPAN:
            break
    if above or at < 16:
        raise ValueError("no markers before the tokens")
    last = struct.unpack_from("<I", data, at + 4 * (count - 1))[0]
    end = at - last - ALIGNMENT
    lowest = max(ALIGNMENT, end - SPAN * NAME_BYTES_MAX)
    for names in range(end - end % ALIGNMENT, lowest, -ALIGNMENT):
        symbols = struct.unpack_from("<I", data, names - ALIGNMENT)[0]
        if SYMBOLS_MIN <= symbols <= SYMBOLS_MAX and -(-symbols // SPAN) == count:
            if _names_agree(data, names, at, count, symbols):
                return Layout(tokens, symbols, names, at)
    raise ValueError("no names before the markers")


def _sequence_before(data: bytes, table: int) -> int:
    """Where 6.2's order by name begins, 3 bytes a symbol, that Linux up to 6.3 has in between.

    Debian's 6.1 has it, too. It is a permutation: the largest number tells how many there are.
    """
    for end in range(table, max(0, table - ALIGNMENT), -1):
        if data[end:table].strip(b"\0"):
            break  # no padding
        backwards = data[max(0, end - 3 * SYMBOLS_MAX) : end][::-1]
        groups = zip(backwards[::3], backwards[1::3], backwards[2::3], strict=False)
        top = -1
        for count, (low, middle, high) in enumerate(groups, 1):
            value = high << 16 | middle << 8 | low
            if value > top:
                if value >= SYMBOLS_MAX:
                    break
                top = value
            if count == top + 1 and not (end - 3 * count) % ALIGNMENT and count >= SYMBOLS_MIN:
                return end - 3 * count
    return table


def _names_agree(data: bytes, names: int, markers: int, count: int, symbols: int) -> bool:
    """Whether the last marker leads to the last names, and these end where the markers begin."""
    at = names + int(struct.unpack_from("<I", data, markers + 4 * (count - 1))[0])
    for _ in range(symbols - SPAN * (count - 1)):
        at = _skip(data, at)
        if at > markers:
            return False
    return markers - at < ALIGNMENT


def _with_offsets(data: bytes, layout: Layout, index_end: int) -> Layout:
    """Offsets and their base: behind the token index (6.4 and later), or before the names."""
    size = _aligned(4 * layout.count, ALIGNMENT)
    later = _aligned(index_end, ALIGNMENT)
    for offsets, base in ((later, later + size), (layout.names - 16 - size, layout.names - 16)):
        if offsets >= 0:
            value = struct.unpack_from("<Q", data, base)[0]
            if KERNEL_START <= value < 1 << 64 and value % 4096 == 0:
                return layout.replace(offsets=offsets, relative_base=value)
    raise ValueError("no offsets")


def _skip(data: bytes, at: int) -> int:
    """Where the name behind the one at ``at`` begins."""
    length = data[at]
    if length & 0x80:
        return at + 2 + (length & 0x7F | data[at + 1] << 7)
    return at + 1 + length


def _expanded(data: bytes, at: int, tokens: tuple[bytes, ...]) -> tuple[bytes, int]:
    """(type letter and name, place behind it)."""
    length = data[at]
    at += 1
    if length & 0x80:
        length = length & 0x7F | data[at] << 7
        at += 1
    if not 0 < length <= NAME_BYTES_MAX:
        raise ValueError(f"a name of {length} bytes")
    end = at + length
    return b"".join(map(tokens.__getitem__, data[at:end]))[:NAME_BYTES_MAX], end


def _split(name: bytes) -> tuple[str, str]:
    text = name.decode("ascii", "replace")
    if not text.isprintable():  # it goes to somebody's terminal
        text = "".join([char if char.isprintable() else "?" for char in text])
    return text[:1], text[1:]


def _aligned(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment
