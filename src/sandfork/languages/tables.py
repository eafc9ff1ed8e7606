"""Typed values out of TOML tables; everything else is refused with the file and the key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NoReturn

_SIZE = re.compile(r"(\d{1,12})([kmg]?)", re.IGNORECASE)
_UNITS = {"": 0, "k": 10, "m": 20, "g": 30}


class CatalogueError(ValueError):
    """A language file is wrong; the message names the file and the key."""


class Table:
    """One TOML table of a file, and the keys it may have."""

    def __init__(self, where: str, values: Mapping[str, object], known: tuple[str, ...] | None = None) -> None:
        """`known` are all keys there may be; None stands for any. *Raises* CatalogueError for an unknown one."""
        self.where = where
        self._values = values
        for key in values:
            if known is not None and key not in known:
                self.refuse(key, f"unknown key; known are {', '.join(known)}")

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def names(self) -> tuple[str, ...]:
        """Return the keys that are there, in their order."""
        return tuple(self._values)

    def refuse(self, key: str, reason: str) -> NoReturn:
        """*Raises* CatalogueError."""
        raise CatalogueError(f"{self.where}: {key}: {reason}")

    def _value(self, key: str, default: object) -> object:
        value = self._values.get(key, default)
        if value is None:
            self.refuse(key, "is missing")
        return value

    def match(self, key: str, text: str, pattern: re.Pattern[str] | None) -> str:
        """Return `text` when the pattern takes all of it."""
        if pattern is not None and pattern.fullmatch(text) is None:
            self.refuse(key, f"{text!r} does not match {pattern.pattern}")
        return text

    def text(self, key: str, pattern: re.Pattern[str] | None = None, default: str | None = None) -> str:
        """Return a string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            self.refuse(key, "must be a string")
        return self.match(key, value, pattern)

    def texts(
        self, key: str, default: tuple[str, ...] | None = None, pattern: re.Pattern[str] | None = None
    ) -> tuple[str, ...]:
        """Return a list of strings."""
        value = self._value(key, default)
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) and item for item in value):
            self.refuse(key, "must be a list of strings, none empty")
        return tuple(self.match(key, item, pattern) for item in value)

    def number(self, key: str, low: float, high: float) -> float:
        """Return a number within bounds."""
        value = self._value(key, None)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            self.refuse(key, f"must be a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, key: str) -> bool:
        """Return true or false; false when it is not there."""
        value = self._value(key, False)
        if not isinstance(value, bool):
            self.refuse(key, "must be true or false")
        return value

    def whole(self, key: str) -> int:
        """Return a whole number above zero; a text such as "512m" is one, too."""
        value = self._value(key, None)
        if isinstance(value, str) and (match := _SIZE.fullmatch(value)):
            value = int(match[1]) << _UNITS[match[2].lower()]
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            self.refuse(key, 'must be a whole number above zero, or a size such as "512m"')
        return value

    def holds_table(self, key: str) -> bool:
        """Tell whether the value of a key is a table."""
        return isinstance(self._values.get(key), dict)

    def table(self, key: str, known: tuple[str, ...] | None = None) -> Table:
        """Return the table of that key, an empty one when it is not there."""
        value = self._value(key, {})
        if not isinstance(value, dict):
            self.refuse(key, f"must be a table, [{key}]")
        return Table(f"{self.where}, {key}", value, known)

    def tables(self, key: str) -> list[Mapping[str, object]]:
        """Return the tables of a list, none when it is not there."""
        value = self._value(key, ())
        if not isinstance(value, list | tuple) or not all(isinstance(item, dict) for item in value):
            self.refuse(key, f"must be a list of tables, [[{key}]]")
        return list(value)
