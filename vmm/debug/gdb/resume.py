"""``vCont``: which threads are to go on, and how. Source: gdb's manual, appendix E, Packets."""

from __future__ import annotations

from vmm.debug.gdb.forms import address_of, thread_of

CONTINUE_WORDS = (b"c", b"C", b"s", b"S", b"r")
# More actions than this say the same of every thread.
ACTIONS_MAX = 8192


class Order:
    """What a thread is to do: go on, or step, on and on as long as its rip is ``inside``."""

    def __init__(self, step: bool = False, inside: range | None = None) -> None:
        self.step = step
        self.inside = inside


def orders_of(text: bytes, threads: int) -> dict[int, Order]:
    """By thread, from 1 on; the first action that names a thread counts. ValueError."""
    orders: dict[int, Order] = {}
    actions = text.split(b";", ACTIONS_MAX)
    for action in actions:
        word, colon, who = action.partition(b":")
        order = _order(word)
        thread = thread_of(who) if colon else -1
        if thread > threads:
            raise ValueError(f"no thread {thread}: there are 1 to {threads}")
        if thread > 0:
            orders.setdefault(thread, order)
            continue
        for each in range(1, threads + 1):
            orders.setdefault(each, order)
            if thread == 0:
                break
    return orders


def _order(word: bytes) -> Order:
    """Signals behind ``C`` and ``S`` are nothing that a processor knows."""
    head, rest = word[:1], word[1:]
    if head == b"r":
        start, _, end = rest.partition(b",")
        return Order(step=True, inside=range(address_of(start), address_of(end)))
    if head in (b"C", b"S"):
        address_of(rest)
    elif rest or head not in (b"c", b"s"):
        raise ValueError(f"vCont knows no action {word[:40]!r}")
    return Order(step=head in (b"s", b"S"))
