"""What tests of dialects share: the places a dialect answers at, and what two answers of one kind have in common."""

from __future__ import annotations

from typing import Any

import pytest


def shape(value: Any) -> Any:
    """Return a JSON value with its leaves replaced by their types: what two answers of one kind share."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [shape(inner) for inner in value]
    return type(value).__name__


def places(name: str) -> pytest.MarkDecorator:
    """Run a test at every place a dialect answers at: `base` is the address, `dialect` what the server speaks."""
    here = [("", None), (f"/{name}", None), ("", name)]
    return pytest.mark.parametrize(("base", "dialect"), here, ids=["root", "prefix", "alone"])


def exact_places(name: str) -> pytest.MarkDecorator:
    """The same but for the root of a server of all dialects, which has its own word on some paths."""
    return pytest.mark.parametrize(("base", "dialect"), [(f"/{name}", None), ("", name)], ids=["prefix", "alone"])
