"""Emulated devices: what the guest sees, given only handles (memory, interrupts, eventfds)."""
