"""A machine is taken apart to the end."""

from __future__ import annotations

import pytest

from tests.support.guest_asm import Program
from tests.support.tiny_machine import TinyMachine


@pytest.mark.parametrize("broken", ["virtio", "vm"])
def test_every_step_is_tried(tmp_path, monkeypatch, broken):
    """The test's own search for descriptors and threads left behind is the rest of it."""
    with TinyMachine(tmp_path, bytes(Program().power_off())) as tiny:
        tiny.run()
        part = tiny.machine.virtio[-1] if broken == "virtio" else tiny.machine.vm
        close = part.close

        def fail() -> None:
            close()
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(part, "close", fail)
        tiny.machine.close()
        with pytest.raises(ValueError, match="closed"):
            tiny.machine.memory.read(0, 1)


def test_doorbells_that_stay_stop_no_device(tmp_path, monkeypatch):
    with TinyMachine(tmp_path, bytes(Program().power_off())) as tiny:
        tiny.run()
        closed = []
        for function in tiny.machine.virtio:
            monkeypatch.setattr(
                function, "_detach_bells", lambda: (_ for _ in ()).throw(OSError(2, "no bell"))
            )
            close = function.device.close
            monkeypatch.setattr(
                function.device, "close", lambda close=close: (closed.append(1), close())
            )
        tiny.machine.close()
        assert len(closed) == len(tiny.machine.virtio)
