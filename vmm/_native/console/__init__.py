"""Bytes between guest consoles and the host's descriptors, and the UART."""
