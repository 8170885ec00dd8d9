"""Packages that a part of this needs and that need not be installed."""

from __future__ import annotations

import importlib
from typing import Any

from vmm.errors import HostError


def need(package: str, what: str) -> Any:
    """The module ``package``; HostError names ``what`` needs it and how to get it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise HostError(
            f"{what} needs the Python package {package}: {error}",
            f"pip install {package.partition('.')[0]}",
        ) from None
