"""Have WebSockets end with the server: what runs on one may end first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

RESTARTING = 1012
"""The close code for who may come again: here, or where the server went."""
REASON = "the server is shutting down"


class Drain:
    """Tells every open WebSocket that the server is about to end."""

    def __init__(self) -> None:
        self.begun = False
        self._open: set[Callable[[], object]] = set()

    def begin(self) -> None:
        """Tell all that are open, and every later one at once."""
        self.begun = True
        for tell in tuple(self._open):
            tell()

    @contextmanager
    def telling(self, tell: Callable[[], object]) -> Iterator[None]:
        """Have `tell` called when it begins, if that is before the end of this block."""
        self._open.add(tell)
        try:
            if self.begun:
                tell()
            yield
        finally:
            self._open.discard(tell)
