"""The server side of gdb's remote protocol: packets, what gdb asks, and a guest as its target."""
