"""A call that one thread asks another one to make."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class Call:
    """Made by run(); ``done`` is set then, and value() has what came of it."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.function = function
        self.arguments = arguments
        self.done = threading.Event()
        self._result: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Whatever is raised is kept for who asked."""
        try:
            self._result = self.function(*self.arguments)
        except BaseException as error:
            self._error = error
        self.done.set()

    def value(self) -> Any:
        """What the function returned; what it raised comes out."""
        if self._error is not None:
            raise self._error
        return self._result
