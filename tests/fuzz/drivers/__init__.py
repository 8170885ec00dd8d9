"""Loops of native targets: an input costs no Python. Built by tests/fuzz/build.py."""
