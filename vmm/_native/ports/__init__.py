"""Devices of a port or two, and what PCI functions answer without Python."""
