"""Frozen records: small immutable classes without the cost of importing `dataclasses`.

Importing `dataclasses` takes about as long as the rest of the interpreter's start; the start path
cannot afford it. A record names its fields in `__slots__` and sets them once, in its `__init__`,
with `_set`. After that it never changes.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn, Self


def _gather_fields(cls: type) -> tuple[str, ...]:
    """The slots of `cls` and of its bases, base classes first, each name once."""
    names: dict[str, None] = {}
    for base in reversed(cls.__mro__):
        slots = base.__dict__.get("__slots__", ())
        if isinstance(slots, str):
            slots = (slots,)
        for name in slots:
            if name != "__weakref__" and name != "__dict__":
                names[name] = None
    return tuple(names)


class Record:
    """Base of every frozen record.

    A subclass lists its fields in `__slots__` and calls `self._set(field=value, ...)` in its
    `__init__`. Records compare and hash by class and fields, print all their fields, and raise
    AttributeError when something tries to change them. Safe to share between threads.
    """

    __slots__ = ()
    _fields: tuple[str, ...] = ()

    def __init_subclass__(cls) -> None:
        """Gather the fields once, when the class is made; each record class needs `__slots__`."""
        if "__slots__" not in cls.__dict__:
            raise TypeError(f"record class {cls.__name__} must define __slots__ (it may be empty)")
        cls._fields = _gather_fields(cls)

    def _set(self, **values: object) -> None:
        """Set fields during `__init__`; AttributeError names a field that the class lacks."""
        set_field = object.__setattr__
        for name, value in values.items():
            set_field(self, name, value)

    def _values(self) -> tuple[object, ...]:
        """The values of all fields, in the order of `_fields`; all must have been set."""
        return tuple([getattr(self, name) for name in self._fields])

    def replace(self, **changes: object) -> Self:
        """A copy with some fields changed; AttributeError names a field that does not exist.

        The copy is made field by field, without `__init__`, so nothing is validated again.
        """
        cls = type(self)
        copy = cls.__new__(cls)
        for name in changes:
            if name not in self._fields:
                raise AttributeError(f"{cls.__name__} has no field {name!r}")
        for name in self._fields:
            object.__setattr__(
                copy, name, changes[name] if name in changes else getattr(self, name)
            )
        return copy

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen: {name!r} cannot be set")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen: {name!r} cannot be deleted")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Record) or type(self) is not type(other):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash((type(self), self._values()))

    def __repr__(self) -> str:
        fields = ", ".join([f"{name}={getattr(self, name)!r}" for name in self._fields])
        return f"{type(self).__name__}({fields})"

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        """Pickle and `copy` by fields: the default way would go through `__setattr__`."""
        return _restore, (type(self), self._values())


def _restore(cls: type[Record], values: tuple[object, ...]) -> Record:
    """Rebuild a record from its values (pickle's counterpart of `Record.__reduce__`)."""
    record = cls.__new__(cls)
    record._set(**dict(zip(cls._fields, values, strict=True)))
    return record
