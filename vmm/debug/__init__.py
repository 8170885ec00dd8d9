"""A guest in your hands: run control, breakpoints, trace, snapshots, gdb; no part of `start`."""
