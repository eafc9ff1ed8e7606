"""Writes to the stdin of a process, a pipe or a terminal, at the pace of who reads it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable


class Writer:
    """One piece at a time, to a descriptor that does not block and stays its owner's.

    `then` is called when all of a piece is written. Once nobody is there to read, it is `broken`, and all is dropped.
    """

    __slots__ = ("_fd", "_left", "_loop", "_then", "_waits", "_written", "broken")

    def __init__(self, fd: int, then: Callable[[], None] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._fd = fd
        self._then = then
        self._left = memoryview(b"")
        self._waits = False
        self._written: asyncio.Future[None] | None = None
        self.broken = False

    def put(self, data: bytes) -> None:
        """Write as much as there is room for now, and the rest as there is more."""
        self._left = memoryview(data)
        self._write()

    async def written(self) -> None:
        """Wait until all is written, or nobody reads it any more."""
        while self._left:
            self._written = self._written or self._loop.create_future()
            await asyncio.shield(self._written)

    def _write(self) -> None:
        try:
            while self._left:
                self._left = self._left[os.write(self._fd, self._left) :]
        except BlockingIOError:
            if not self._waits:
                self._waits = True
                self._loop.add_writer(self._fd, self._write)
            return
        except OSError:
            self.broken = True
            self._left = memoryview(b"")
        if self._waits or self._written is not None:
            self.stop()
        if self._then is not None:
            self._then()

    def stop(self) -> None:
        """Drop what is not written; to be called before the descriptor is closed."""
        if self._waits:
            self._waits = False
            self._loop.remove_writer(self._fd)
        self._left = memoryview(b"")
        if self._written is not None and not self._written.done():
            self._written.set_result(None)
        self._written = None
