"""`guest.trace`: every exit of every vCPU, with its times, kept and shown.

Exits go into native rings, one a vCPU (vmm/_native/kvm/tracering.pxd); a thread moves them from
there into memory of ours. Both are bounded by what start() was told, and what finds no room is
counted in ``dropped``: the newest records are lost then, never silently.

What does not come to us is not here: a doorbell that the kernel turned into an eventfd, its own
interrupt controllers, page faults, most HLTs. vmm/debug/stats.py has the kernel's counts of those.
"""

from __future__ import annotations

from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any

from vmm._native.kvm.tracering import NO_RIP, RECORD_SIZE, TraceRing, rip_mode, tsc_now
from vmm.debug.exitnames import ExitNames

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm.debug.tracerecord import Array, TscClock
    from vmm.debug.tracesummary import Summary
    from vmm.machine import Machine

RING_RECORDS = 1 << 16
KEEP_RECORDS = 1 << 22
# At 130,000 exits a second, what one vCPU does at most here, this fills a 25th of a ring.
DRAIN_MS = 20
CHUNK_BYTES = 1 << 20


class Trace:
    """The exits of one machine's vCPUs. Any Python thread; also while the guest runs.

    ``with trace:`` (or ``with trace.start(rip=True):``) stops it at the end. Records stay until
    clear(), and a later start() adds to them.
    """

    def __init__(self, machine: Machine, name: str = "guest") -> None:
        self.name = name
        self.names = ExitNames(machine)
        self._machine = machine
        self._loops = [vcpu.loop for vcpu in machine.vcpus]
        self._lock = Lock()
        self._rings: list[Any] = []
        self._chunks: list[bytearray] = []
        self._kept = 0
        self._room = 0
        self._dropped_before = 0
        self._anchor: tuple[int, int] | None = None
        self._clock: TscClock | None = None
        self._reader: Thread | None = None
        self._end = Event()
        self.on = False

    def start(
        self, size: int = RING_RECORDS, rip: bool = False, keep: int = KEEP_RECORDS,
        drain_ms: int = DRAIN_MS,
    ) -> Trace:  # fmt: skip
        """Record from now on. Returns itself, for ``with``.

        ``size``: records in each vCPU's ring (a power of two). ``keep``: how many are taken out
        of the rings in all. Memory: 64 bytes x (keep + size x vCPUs) at most. ``rip``: where the
        guest was at each exit. ``drain_ms``: how often the rings are emptied; 0 for never, and
        then drain(), and each look at the records, is yours. ValueError when it is on already.
        """
        if self.on:
            raise ValueError("this trace is on already: stop() it before start()")
        if keep < 0 or drain_ms < 0:
            raise ValueError(f"keep={keep}, drain_ms={drain_ms}: neither can be negative")
        rings = self._make_rings(size, rip)
        self.drain()
        with self._lock:
            self._dropped_before += sum(ring.dropped for ring in self._rings)
            self._rings = rings
            self._room = keep
            self._anchor = self._anchor or tsc_now()
        self.on = True
        self._switch(rings)
        if drain_ms:
            self._end.clear()
            self._reader = Thread(
                target=self._read, args=(drain_ms / 1000,), name="trace", daemon=True
            )
            self._reader.start()
        return self

    def _make_rings(self, size: int, rip: bool) -> list[Any]:
        mode = self._rip_mode() if rip else NO_RIP
        return [TraceRing(size, mode) for _ in self._loops]

    def _rip_mode(self) -> int:
        return rip_mode(self._machine.vm.fd)

    def _switch(self, rings: Sequence[Any]) -> None:
        """Let exits go into these rings; none: nowhere."""
        for loop, ring in zip(self._loops, rings or [None] * len(self._loops), strict=True):
            loop.set_trace(ring)

    def _read(self, seconds: float) -> None:
        while not self._end.wait(seconds):
            self.drain()

    def stop(self) -> None:
        """Record no more; the records stay. Does nothing when it is off.

        An exit that is just being handled is not among them.
        """
        if not self.on:
            return
        self.on = False
        self._switch(())
        if self._reader is not None:
            self._end.set()
            self._reader.join()
            self._reader = None
        self.drain()

    def drain(self) -> int:
        """Take what is in the rings, up to ``keep`` while it is on; how many records that were."""
        with self._lock:
            self.names.learn()
            before = self._kept
            for ring in self._rings:
                room = self._room - self._kept if self.on else ring.waiting
                self._take(ring, min(ring.waiting, room))
            return self._kept - before

    def _take(self, ring: Any, records: int) -> None:
        if records <= 0:
            return
        data = bytearray(records * RECORD_SIZE)
        ring.read_into(data)
        if not self._chunks or len(self._chunks[-1]) >= CHUNK_BYTES:
            self._chunks.append(data)
        else:
            self._chunks[-1] += data
        self._kept += records

    def clear(self) -> None:
        """Forget all records and what was dropped; it stays on or off."""
        with self._lock:
            for ring in self._rings:
                self._take(ring, ring.waiting)
            self._chunks = []
            self._kept = 0
            self._dropped_before = -sum(ring.dropped for ring in self._rings)
            self._anchor = tsc_now() if self.on else None
            self._clock = None

    @property
    def dropped(self) -> int:
        """Exits that found no room, of all vCPUs; see dropped_by_vcpu for the last start()."""
        return self._dropped_before + sum(self.dropped_by_vcpu)

    @property
    def dropped_by_vcpu(self) -> list[int]:
        """The same for each vCPU, since the last start()."""
        return [ring.dropped for ring in self._rings]

    def __len__(self) -> int:
        with self._lock:
            waiting: list[int] = [ring.waiting for ring in self._rings]
            return self._kept + sum(waiting)

    @property
    def clock(self) -> TscClock:
        """The TSC as time, since the first start()."""
        from vmm.debug.tracerecord import TscClock

        if self._anchor is None:
            raise ValueError("nothing has been traced yet: start() first")
        if self._clock is None:
            self._clock = TscClock(self._anchor)
        return self._clock

    def chunks(self) -> Iterator[Array]:
        """The records piece by piece, as tracerecord.FIELDS, each vCPU's in their order.

        What arrives after the call is not among them.
        """
        import numpy as np

        from vmm.debug.tracerecord import RAW, with_times

        self.drain()
        with self._lock:
            chunks = list(self._chunks)
        hz = self.clock.hz if chunks else 0.0
        for chunk in chunks:
            yield with_times(np.frombuffer(bytes(chunk), RAW), self.clock.anchor_tsc, hz)

    def numpy(self) -> Array:
        """All records as one array in the order of time; tracerecord.py tells the fields."""
        import numpy as np

        from vmm.debug.tracerecord import FIELDS

        found = list(self.chunks())
        records = np.concatenate(found) if found else np.empty(0, FIELDS)
        return records[np.argsort(records["exit_tsc"], kind="stable")]

    def pandas(self) -> Any:
        """A DataFrame of numpy()'s fields, and ``exit``, its name (a categorical)."""
        from vmm.debug.extras import need
        from vmm.debug.tracesummary import named

        pandas = need("pandas", "trace.pandas()")
        records = self.numpy()
        names, codes = named(records, self.names)
        frame = pandas.DataFrame({name: records[name] for name in records.dtype.names or ()})
        frame.insert(1, "exit", pandas.Categorical.from_codes(codes, names))
        return frame

    def summary(self) -> Summary:
        """Count, rate and time in the VMM of each kind of exit."""
        from vmm.debug.tracesummary import summarize

        return summarize(self.numpy(), self.names, self.dropped)

    def plot(self, top: int = 8) -> Any:
        """A matplotlib Figure: exits over time and time in the VMM, of the ``top`` kinds."""
        from vmm.debug.traceplot import plot

        return plot(self.numpy(), self.names, top)

    def perfetto(self, path: Any) -> int:
        """Write Chrome's trace events (JSON), as ui.perfetto.dev opens; how many records."""
        from vmm.debug.perfetto import write

        return write(path, self.name, self.chunks(), self.names, self._facts)

    def _facts(self) -> dict[str, object]:
        facts: dict[str, object] = {"dropped": self.dropped}
        if self._anchor is not None:
            facts.update(tsc_hz=round(self.clock.hz), start_monotonic_ns=self._anchor[1])
        return facts

    def __enter__(self) -> Trace:
        return self if self.on else self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "on" if self.on else "off"
        vcpus = f"{len(self._loops)} vCPU{'s' * (len(self._loops) != 1)}"
        return (
            f"<Trace of {self.name}, {vcpus}, {state}: {len(self)} exits, {self.dropped} dropped>"
        )

    def _repr_html_(self) -> str:
        from html import escape

        return f"<p>{escape(repr(self))}</p>{self.summary()._repr_html_()}"
