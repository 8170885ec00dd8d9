"""One debugger's visit, from its first packet to its last: requests in, answers out.

What it sends may be anything: each request is checked by form, and what goes wrong is an error
reply. Source: gdb's manual, appendix E (Remote Protocol), Packets, vCont, Stop Reply Packets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm.debug import stop
from vmm.debug.gdb import replies
from vmm.debug.gdb.forms import address_of, breakpoint_of, memory_of, thread_of
from vmm.debug.gdb.memory import NoMemory
from vmm.debug.gdb.packets import ACK, NAK, PACKET_MAX, Packet, encode
from vmm.debug.gdb.queries import query, setting
from vmm.debug.gdb.registers import number_of
from vmm.debug.gdb.resume import CONTINUE_WORDS, orders_of
from vmm.errors import VmmError
from vmm.log.hub import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.debug.gdb.client import Client
    from vmm.debug.gdb.resume import Order
    from vmm.debug.gdb.target import GdbTarget
    from vmm.debug.stop import Stop

log = get_logger(__name__)

DETACHED: Final = "detached"
VANISHED: Final = "vanished"
KILLED: Final = "killed"
ENDED: Final = "ended"
INTERRUPTED: Final = "interrupted"


class Session:
    """``serve()`` it on the thread that drives the guest.

    ``stays``: a guest that has crashed can still be looked at. ``failure`` is what an action of
    the script's own has raised, which gdb is told as well.
    """

    def __init__(self, client: Client, target: GdbTarget, stays: bool = False) -> None:
        self.client = client
        self.target = target
        self.features: set[str] = set()
        self.thread = 1
        # The next thread that a list of threads goes on with.
        self.listed = 1
        self.failure: BaseException | None = None
        self.end = ""
        self._stays = stays
        self._runner = 0
        self._acknowledges = True
        self._last: Stop | None = None

    def serve(self) -> str:
        """How the visit ended: detached, vanished, killed, ended (the guest) or interrupted."""
        try:
            while not self.end:
                packet = self.client.take()
                reply = None if packet is None else self._received(packet)
                if reply is not None:
                    self.send(reply)
                elif packet is None:
                    self.end = VANISHED
        finally:
            self.target.remove_all()
        return self.end

    def send(self, reply: bytes) -> None:
        """One packet."""
        self.client.send(encode(reply))

    def _received(self, packet: Packet) -> bytes | None:
        if self._acknowledges:
            self.client.acknowledge(ACK if packet.good else NAK)
            if not packet.good:
                return None
        try:
            return self.answer(packet.data)
        except NoMemory:
            return replies.NO_MEMORY
        except (ValueError, LookupError) as error:
            log.debug(f"gdb: {packet.data[:40]!r}: {error}")
            return replies.BAD_REQUEST
        except (OSError, RuntimeError, VmmError) as error:
            log.debug(f"gdb: {packet.data[:40]!r}: {error}")
            return replies.REFUSED
        except Exception as error:
            # Whatever a debugger sends, the guest is not to suffer from our mistake.
            log.error(f"gdb: {packet.data[:40]!r}: {error!r}")
            return replies.BAD_REQUEST

    def answer(self, data: bytes) -> bytes | None:
        """The reply to one request; None for none. What it raises is an error reply."""
        head = data[:1]
        handler = HANDLERS.get(head)
        if handler is not None:
            return handler(self, data[1:])
        if head == b"v":
            return self._verb(data)
        if head in (b"q", b"Q"):
            return query(self, data) if head == b"q" else setting(self, data)
        return replies.NOT_SUPPORTED

    def acknowledge_no_more(self) -> None:
        """The connection is a reliable one."""
        self._acknowledges = False

    def tell(self, text: str) -> None:
        """Let gdb print something; while the guest runs, or in an answer to `monitor`."""
        for packet in replies.console(text, PACKET_MAX):
            self.send(packet)

    # --- registers and memory ---

    def _read_all(self, data: bytes) -> bytes:
        return self.target.registers(self.thread).read_all().hex().encode()

    def _write_all(self, data: bytes) -> bytes:
        self.target.registers(self.thread).write_all(bytes.fromhex(data.decode("ascii")))
        return replies.OK

    def _read_one(self, data: bytes) -> bytes:
        return self.target.registers(self.thread).read(address_of(data)).hex().encode()

    def _write_one(self, data: bytes) -> bytes:
        number, _, value = data.partition(b"=")
        raw = bytes.fromhex(value.decode("ascii"))
        self.target.registers(self.thread).write(address_of(number), raw)
        return replies.OK

    def _read_memory(self, data: bytes) -> bytes:
        address, length = memory_of(data)
        length = min(length, PACKET_MAX // 2)
        return self.target.read_memory(self.thread, address, length).hex().encode()

    def _write_memory(self, data: bytes) -> bytes:
        head, _, digits = data.partition(b":")
        return self._write(head, bytes.fromhex(digits.decode("ascii")))

    def _write_binary(self, data: bytes) -> bytes:
        head, _, raw = data.partition(b":")
        return self._write(head, raw)

    def _write(self, head: bytes, raw: bytes) -> bytes:
        address, length = memory_of(head)
        if length != len(raw):
            raise ValueError(f"{len(raw)} bytes came, not {length}")
        self.target.write_memory(self.thread, address, raw)
        return replies.OK

    # --- threads and breakpoints ---

    def _select(self, data: bytes) -> bytes:
        thread = thread_of(data[1:])
        if thread > 0:
            self.target.cpu(thread)
        if data[:1] == b"g":
            self.thread = thread if thread > 0 else self.thread
        elif data[:1] == b"c":
            self._runner = max(thread, 0)
        else:
            return replies.NOT_SUPPORTED
        return replies.OK

    def _alive(self, data: bytes) -> bytes:
        self.target.cpu(thread_of(data))
        return replies.OK

    def _insert(self, data: bytes) -> bytes:
        return self._point(data, self.target.insert)

    def _remove(self, data: bytes) -> bytes:
        return self._point(data, self.target.remove)

    def _point(self, data: bytes, act: Callable[[int, int, int], bool]) -> bytes:
        kind, address, size = breakpoint_of(data)
        try:
            return replies.OK if act(kind, address, size) else replies.NOT_SUPPORTED
        except (ValueError, VmmError) as error:
            return replies.error_text(error)

    # --- running ---

    def _reason(self, data: bytes) -> bytes:
        if self.target.control.outcome is not None:
            return self._ended(self.target.control.outcome.kind)
        found = self._last or stop.Stop(stop.STEP, self.thread - 1)
        return replies.stopped(found, self.features)

    def _resume(self, word: bytes, data: bytes) -> bytes | None:
        """``c``, ``s`` and, with a signal that no processor knows, ``C`` and ``S``."""
        if word in (b"C", b"S"):
            _, _, data = data.partition(b";")
        thread = self._runner or self.thread
        if data:
            pc = number_of("rip")
            assert pc is not None
            self.target.registers(thread).write(pc, address_of(data).to_bytes(8, "little"))
        who = b"" if word in (b"c", b"C") and not self._runner else b":%x" % thread
        return self._go(orders_of(word.lower() + who, self.target.threads))

    def _continue(self, data: bytes) -> bytes | None:
        return self._resume(b"c", data)

    def _step(self, data: bytes) -> bytes | None:
        return self._resume(b"s", data)

    def _continue_signal(self, data: bytes) -> bytes | None:
        return self._resume(b"C", data)

    def _step_signal(self, data: bytes) -> bytes | None:
        return self._resume(b"S", data)

    def _verb(self, data: bytes) -> bytes | None:
        if data == b"vCont?":
            return b"vCont" + b"".join([b";" + word for word in CONTINUE_WORDS])
        if data.startswith(b"vCont;"):
            return self._go(orders_of(data[len(b"vCont;") :], self.target.threads))
        if data.startswith(b"vKill"):
            self.end = KILLED
            self.client.end("killed")
            return replies.OK
        return replies.NOT_SUPPORTED

    def _go(self, orders: dict[int, Order]) -> bytes | None:
        outcome = self.target.control.outcome
        if outcome is not None:
            self.end = ENDED
            return replies.ended(outcome.kind)
        if not orders:
            raise ValueError("no thread is to run")
        try:
            found = self.target.run(orders, self.client.interrupted)
        except Exception as error:
            # A script's own action raised it; the guest is intact.
            self.failure = error
            self.tell(f"an action of the script failed: {error!r}\n")
            found = stop.Stop(stop.HOOK, self.thread - 1)
        return self._stopped(found)

    def _stopped(self, found: Stop) -> bytes | None:
        self._last = found
        if found.kind == stop.INTERRUPTED:
            self.end = INTERRUPTED
            self.client.end("the script was interrupted")
            return None
        if found.outcome is not None:
            self.tell(f"the guest ended: {found.outcome.reason}\n")
            return self._ended(found.outcome.kind)
        if found.kind != stop.PAUSED:
            self.thread = found.cpu + 1
        else:
            found = found.replace(cpu=self.thread - 1)
        return replies.stopped(found, self.features)

    def _ended(self, kind: str) -> bytes:
        if self._stays and kind not in ("shutdown", "reset"):
            return replies.dead(self.thread - 1)
        self.end = ENDED
        return replies.ended(kind)

    def _detach(self, data: bytes) -> bytes:
        self.end = DETACHED
        # Before gdb knows, who may call again at once.
        self.client.end("detached")
        return replies.OK

    def _kill(self, data: bytes) -> None:
        self.end = KILLED
        self.client.end("killed")


HANDLERS: dict[bytes, Callable[[Session, bytes], bytes | None]] = {
    b"g": Session._read_all, b"G": Session._write_all, b"p": Session._read_one,
    b"P": Session._write_one, b"m": Session._read_memory, b"M": Session._write_memory,
    b"X": Session._write_binary, b"H": Session._select, b"T": Session._alive,
    b"Z": Session._insert, b"z": Session._remove, b"?": Session._reason,
    b"c": Session._continue, b"s": Session._step, b"C": Session._continue_signal,
    b"S": Session._step_signal, b"D": Session._detach, b"k": Session._kill,
}  # fmt: skip
