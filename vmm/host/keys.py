"""The keys of `start` on a terminal, for those who show them: help, man page, Ctrl-A h."""

from __future__ import annotations

# What the user of a terminal types to us. Everything else is the guest's.
KEYS = (
    ("Ctrl-A x", "press the guest's power button; a second time: kill the guest"),
    ("Ctrl-A c", "type to the other console, where two of them are on the terminal"),
    ("Ctrl-A h", "list the keys"),
    ("Ctrl-A Ctrl-A", "send one Ctrl-A to the guest"),
)
