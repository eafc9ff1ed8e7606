"""Turn a TOML value, or the text of an environment variable, into a setting's type; refuse what does not fit."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import Field
from typing import Any

_SIZE = re.compile(r"(\d+)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_SHIFT = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_TRUTH = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


class Unfit(ValueError):
    """A value does not fit its setting; the message says what would, without naming the key."""


def parse_size(value: object) -> int:
    """Return bytes from an integer or a text such as "512m" (powers of 1024). *Raises* Unfit."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise Unfit(f'expected a size such as 1048576 or "512m", got {show(value)}')
    return int(match[1]) << _SHIFT[match[2].lower()]


def fit(entry: Field[Any], value: object, *, from_text: bool = False) -> Any:
    """Return `value` as the type of the setting `entry`, checked against its range and choices.

    `from_text` accepts the text forms of an environment variable or an option: numbers, true and false, a list
    with commas, a table as JSON. *Raises* Unfit.
    """
    fitted = _convert(entry, value, from_text)
    numbers = fitted.values() if isinstance(fitted, Mapping) else (fitted,)
    for number in numbers:
        if isinstance(number, int | float) and not isinstance(number, bool):
            _check_range(entry, number)
    choices: tuple[str, ...] = entry.metadata["choices"]
    if choices and fitted not in choices:
        raise Unfit(f"expected one of {', '.join(choices)}, got {show(value)}")
    return fitted


def show(value: object) -> str:
    """Return `value` as TOML writes it, near enough for a message."""
    if isinstance(value, Mapping):
        return (
            "{ " + ", ".join(f"{json.dumps(key)} = {show(item)}" for key, item in value.items()) + " }"
            if value
            else "{}"
        )
    if isinstance(value, list | tuple):
        return "[" + ", ".join(show(item) for item in value) + "]"
    if isinstance(value, str | bool):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def _convert(entry: Field[Any], value: object, from_text: bool) -> object:
    kind = str(entry.type)
    if kind == "int":
        return parse_size(value) if entry.name.endswith("_bytes") else _integer(value, from_text)
    if kind == "float":
        return _number(value, from_text)
    if kind == "bool":
        return _truth(value, from_text)
    if kind == "str":
        return _text(value)
    if kind == "tuple[str, ...]":
        return _texts(value, from_text)
    if kind == "Mapping[str, int]":
        return _table(value, from_text)
    raise TypeError(f"{entry.name}: no conversion to {kind}")


def _integer(value: object, from_text: bool) -> int:
    if from_text and isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            raise Unfit(f"expected an integer, got {show(value)}") from None
    if isinstance(value, bool) or not isinstance(value, int):
        raise Unfit(f"expected an integer, got {show(value)}")
    return value


def _number(value: object, from_text: bool) -> float:
    if from_text and isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise Unfit(f"expected a number, got {show(value)}") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unfit(f"expected a number, got {show(value)}")
    return float(value)


def _truth(value: object, from_text: bool) -> bool:
    if isinstance(value, bool):
        return value
    if from_text and isinstance(value, str) and value.lower() in _TRUTH:
        return _TRUTH[value.lower()]
    raise Unfit(f"expected true or false, got {show(value)}")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise Unfit(f"expected a text, got {show(value)}")
    if "\0" in value:
        raise Unfit("expected a text without NUL")
    return value


def _texts(value: object, from_text: bool) -> tuple[str, ...]:
    if from_text and isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if not isinstance(value, list | tuple):
        raise Unfit(f"expected a list of texts, got {show(value)}")
    return tuple(_text(item) for item in value)


def _table(value: object, from_text: bool) -> dict[str, int]:
    if from_text and isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise Unfit(f"expected a JSON object of integers, got {show(value)}") from None
    if not isinstance(value, Mapping):
        raise Unfit(f"expected a table of integers, got {show(value)}")
    return {str(key): _integer(item, from_text) for key, item in value.items()}


def _check_range(entry: Field[Any], number: float) -> None:
    low, high = entry.metadata["low"], entry.metadata["high"]
    if number == 0 and entry.metadata["zero"]:
        return
    # Written so that NaN, which compares false with everything, fails too.
    if not (low is None or number >= low) or not (high is None or number <= high) or number == float("inf"):
        bounds = f"at least {show(low)}" if high is None else f"between {show(low)} and {show(high)}"
        zero = entry.metadata["zero"]
        raise Unfit(f"expected a value {bounds}{zero and f', or 0 for {zero}'}, got {show(number)}")
