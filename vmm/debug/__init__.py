"""A guest in your hands: run control, breakpoints, trace, snapshots, gdb. No part of `start`."""
