"""Devices of a port or two."""
