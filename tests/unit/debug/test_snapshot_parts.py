"""Parts of snapshots that need no KVM: plain values, who is refused, what a fork is told."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from devices.acpi_pm import NEW_GENERATION, POWER_BUTTON, Ged
from vmm.debug.plain import from_text, to_text
from vmm.debug.shadow import pages_by_hardware
from vmm.debug.snapshots import Snapshots
from vmm.errors import HostError


class Line:
    """Counts what was raised."""

    def __init__(self) -> None:
        self.pulses = 0

    def pulse(self) -> None:
        self.pulses += 1

    def settle(self) -> None:
        return


def test_plain_values_come_back():
    value = {"a": [1, -5, 1 << 80, None, True, "text"], "b": b"\x00\xff", "c": {"d": [b"", {}]}}
    assert from_text(to_text(value)) == value
    assert from_text(to_text((1, (2,)))) == [1, [2]]


def test_only_plain_values_go_in():
    with pytest.raises(TypeError, match="a object is no plain value"):
        to_text({"a": object()})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"[" * 100_000, "nested too deep"),
        (b'{"b64":"!"}', "bytes that are none"),
        (b'{"b64":5}', "bytes that are none"),
        (b"1.5", "no whole number"),
        (b"[NaN]", "no whole number"),
        (b"", "Expecting value"),
        (b"1" * 10_000, "limit"),
    ],
)
def test_other_text_is_an_error(text, told):
    with pytest.raises(ValueError, match=told):
        from_text(text)


def test_a_guest_with_passed_through_devices_is_refused():
    machine = SimpleNamespace(passed_through=lambda: [SimpleNamespace(name="0000:65:00.0")])
    with pytest.raises(HostError, match=r"devices of the host's \(0000:65:00.0\)"):
        Snapshots(None, machine, [], None, None, None)


def test_a_fork_s_event_waits_where_no_driver_listens():
    line = Line()
    ged = Ged(line)
    ged.new_generation(heard=False)
    assert line.pulses == 0
    ged.new_generation(heard=True)
    ged.power_button()
    assert line.pulses == 2
    assert ged.state() == {"version": 1, "pending": NEW_GENERATION | POWER_BUTTON}
    other = Ged(Line())
    other.set_state(ged.state())
    assert other.read(0, 1) == NEW_GENERATION | POWER_BUTTON
    assert other.read(0, 1) == 0


def test_who_walks_page_tables_is_known():
    assert pages_by_hardware() in (True, False)
