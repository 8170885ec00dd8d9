"""Finds built-in modules inside packages, which the interpreter's own finder does not look for."""

import sys
from _frozen_importlib import BuiltinImporter, FrozenImporter


class NativeFinder:
    """On sys.meta_path: a built-in module by its full name, wherever it is asked for."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        """The module's spec, or None."""
        return BuiltinImporter.find_spec(name)


# Nothing is ever looked for in the file system.
sys.meta_path[:] = [FrozenImporter, NativeFinder]
