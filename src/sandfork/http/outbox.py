"""What waits for a client that takes it at its own pace: bounded, and not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from sandfork.http.exchange import ClientGone


class Outbox:
    """Texts on their way to a client, in order. Whoever fills it is to stop while it is `full`.

    `max_chars` is how much makes it full; it is half of that when `on_room` is called.
    """

    __slots__ = ("_arrived", "_closed", "_max_chars", "_size", "_texts", "full", "on_room")

    def __init__(self, max_chars: int) -> None:
        self._max_chars = max_chars
        self._texts: list[str] = []
        self._size = 0
        self._arrived = asyncio.Event()
        self._closed = False
        self.full = False
        self.on_room: Callable[[], None] | None = None

    @property
    def closed(self) -> bool:
        """Whether nothing more comes."""
        return self._closed

    def put(self, text: str) -> bool:
        """Add a text, if it is not empty; return whether there is room for more."""
        if text:
            self._texts.append(text)
            self._size += len(text)
            self.full = self.full or self._size >= self._max_chars
            self._arrived.set()
        return not self.full

    def close(self) -> None:
        """Say that nothing more comes."""
        self._closed = True
        self._arrived.set()

    async def take(self) -> list[str]:
        """Return all that waits, as soon as there is something; nothing at the end."""
        if not self._closed:
            await self._arrived.wait()
            self._arrived.clear()
        texts, self._texts, self._size = self._texts, [], 0
        if self.full:
            self.full = False
            if self.on_room is not None:
                self.on_room()
        return texts


class Patience:
    """Sends, but gives up a client that takes nothing for `stall_s` while somebody waits for it."""

    def __init__(self, stall_s: float, waited_for: Callable[[], bool]) -> None:
        """`waited_for` tells whether nothing can go on without the client."""
        self._stall_s = stall_s
        self._waited_for = waited_for
        self._task: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stalled = False

    async def send(self, sending: Awaitable[None]) -> None:
        """Await `sending`. *Raises* ClientGone when it takes too long."""
        self._task = asyncio.current_task()
        self._arm()
        try:
            await sending
        except asyncio.CancelledError:
            if self._stalled and self._task is not None and self._task.uncancel() == 0:
                raise ClientGone from None
            raise
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._task = self._timer = None

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._stall_s, self._look)

    def _look(self) -> None:
        if self._task is not None and self._waited_for():
            self._stalled = True
            self._task.cancel()
        else:
            self._arm()
