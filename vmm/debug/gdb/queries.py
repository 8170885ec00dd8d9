"""``q`` and ``Q``: what gdb asks about the target, and what it sets for the connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.debug.gdb import monitor, replies
from vmm.debug.gdb.description import target_xml
from vmm.debug.gdb.forms import memory_of, thread_of
from vmm.debug.gdb.packets import PACKET_MAX
from vmm.errors import VmmError

if TYPE_CHECKING:
    from typing import Protocol

    from vmm.debug.gdb.target import GdbTarget

    class Session(Protocol):
        """What is asked about: a debugger's visit."""

        features: set[str]
        listed: int
        target: GdbTarget
        thread: int

        def acknowledge_no_more(self) -> None:
            """The connection is a reliable one."""

        def tell(self, text: str) -> None:
            """Let gdb print something."""


KNOWN_FEATURES = ("swbreak", "hwbreak")
FEATURES = (
    f"PacketSize={PACKET_MAX:x};QStartNoAckMode+;qXfer:features:read+;vContSupported+;swbreak+;"
    "hwbreak+"
).encode()
READ_DESCRIPTION = b"qXfer:features:read:target.xml:"
PHYSICAL_QUERY, PHYSICAL_SET = b"qqemu.PhyMemMode", b"Qqemu.PhyMemMode:"
THREADS_PER_PACKET = 500


def query(session: Session, data: bytes) -> bytes | None:
    """The reply to ``q...``."""
    if data.startswith(b"qSupported"):
        told = data.partition(b":")[2].decode("ascii", "replace").split(";")
        session.features = {name for name in KNOWN_FEATURES if f"{name}+" in told}
        return FEATURES
    if data.startswith(READ_DESCRIPTION):
        return _part(target_xml(), data[len(READ_DESCRIPTION) :])
    if data.startswith(b"qRcmd,"):
        return _monitor(session, data[len(b"qRcmd,") :])
    if data.startswith(b"qThreadExtraInfo,"):
        thread = thread_of(data[len(b"qThreadExtraInfo,") :])
        return session.target.describe(thread).encode().hex().encode()
    answers = {
        b"qC": b"QC%x" % session.thread,
        # Attached: gdb that quits lets the guest live.
        b"qAttached": b"1",
        PHYSICAL_QUERY: b"%d" % session.target.physical,
    }
    if data in (b"qfThreadInfo", b"qsThreadInfo"):
        return _threads(session, 1 if data == b"qfThreadInfo" else session.listed)
    return answers.get(data, replies.NOT_SUPPORTED)


def setting(session: Session, data: bytes) -> bytes:
    """The reply to ``Q...``."""
    if data == b"QStartNoAckMode":
        session.acknowledge_no_more()
        return replies.OK
    if data.startswith(PHYSICAL_SET):
        session.target.physical = data[len(PHYSICAL_SET) :] not in (b"", b"0")
        return replies.OK
    return replies.NOT_SUPPORTED


def _part(document: bytes, place: bytes) -> bytes:
    """``m`` and a part, ``l`` and the last part."""
    offset, length = memory_of(place)
    length = min(length, PACKET_MAX - 1)
    part = document[offset : offset + length]
    return (b"m" if offset + length < len(document) else b"l") + part


def _threads(session: Session, first: int) -> bytes:
    last = min(first + THREADS_PER_PACKET - 1, session.target.threads)
    session.listed = last + 1
    if first > last:
        return b"l"
    return b"m" + b",".join([b"%x" % thread for thread in range(first, last + 1)])


def _monitor(session: Session, digits: bytes) -> bytes:
    line = bytes.fromhex(digits.decode("ascii")).decode("utf-8", "replace")
    try:
        text = monitor.answer(session.target, session.thread, line)
    except (OSError, ValueError, LookupError, VmmError) as error:
        # Of a KeyError str() would show the quotes as well.
        text = f"{error.args[0] if isinstance(error, LookupError) else error}\n"
    session.tell(text)
    return replies.OK
