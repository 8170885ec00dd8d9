"""A guest in your hands: run control, breakpoints, trace, snapshots, gdb; not of the service."""
