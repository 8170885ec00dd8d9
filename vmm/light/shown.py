"""How an object shows itself in a notebook: what it says of itself, as it is."""

from __future__ import annotations


class Shown:
    """A base for what has a good ``repr``. Source: IPython's rich display, _repr_html_."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(repr(self))}</pre>"
