"""Declarations of kernel headers for Cython; nothing to import at run time."""
