"""How far a piece of work is, told to whoever waits for it."""

from __future__ import annotations

from collections.abc import Callable

Tell = Callable[[float, str], None]
"""Told how far it is, in percent, and what is done now. What it raises ends the work."""


def tell_nobody(percent: float, now: str) -> None:
    """Be told where nobody wants to know."""
