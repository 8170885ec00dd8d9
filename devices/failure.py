"""What happens when a device raises on a vCPU's thread: the guest goes on, and people hear of it.

A device that meets a host without memory or descriptors handles that itself. What comes here is a
broken invariant of ours, so it is told with its traceback, once for each place that raised.
"""

from __future__ import annotations

from _thread import allocate_lock

from vmm.log.hub import get_logger

log = get_logger(__name__)

_told: set[tuple[str, str, int]] = set()
_lock = allocate_lock()


def tell_failure(device: object, error: BaseException, name: str = "") -> None:
    """Mark ``device`` as broken where it has a way to say so, and log what it raised.

    Called on the thread that raised, without locks or under the PCI bus's.
    """
    name = str(getattr(device, "name", name)) or type(device).__name__
    try:
        getattr(device, "failed", _nothing)()
    except Exception as again:
        _tell(name, again)
    _tell(name, error)


def on_bus_error(device: object, name: str, error: BaseException) -> None:
    """The same for a Python device that the bus knows as ``name`` (Bus.on_error)."""
    tell_failure(device, error, name)


def _nothing() -> None:
    """For devices that have no state to be broken in."""


def _tell(name: str, error: BaseException) -> None:
    place = (name, *_place(error))
    with _lock:
        first = place not in _told
        _told.add(place)
    if first:
        log.error(f"{name} failed, the guest goes on without it: {error!r}\n{_traceback(error)}")
    else:
        log.error(f"{name} failed again: {error!r}")


def _place(error: BaseException) -> tuple[str, int]:
    """File and line that raised: these are few, whatever a guest does."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "", 0
    return trace.tb_frame.f_code.co_filename, trace.tb_lineno


def _traceback(error: BaseException) -> str:
    """The places, as Python shows them, without the lines' text: a vCPU's thread opens no file."""
    lines = ["Traceback (most recent call last):"]
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        lines.append(f'  File "{code.co_filename}", line {trace.tb_lineno}, in {code.co_name}')
        trace = trace.tb_next
    return "\n".join([*lines, f"{type(error).__name__}: {error}"])
