"""Disposal: destroying sandboxes after their answer has left.

Closing a sandbox costs the kernel work that the caller need not wait for, and the event loop writes a response only at
the end of its iteration: anything done in between delays the answer. So a close starts `delay_s` later, on its own. A
close that fails or hangs is logged and stays counted as dying, because what it was to destroy may still be alive.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from sandfork.tiers.base import Sandbox

log = logging.getLogger(__name__)


class Disposal:
    """Closes sandboxes in the background and owns the tasks that do."""

    def __init__(
        self, *, delay_s: float = 0.001, close_s: float = 30.0, begin: Callable[[], None], end: Callable[[], None]
    ) -> None:
        """`begin` is called for each sandbox when it is added, `end` when it is known to be gone."""
        self._delay_s = delay_s
        self._close_s = close_s
        self._begin = begin
        self._end = end
        self._waiting: dict[Sandbox, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.lost = 0

    def add(self, sandbox: Sandbox) -> None:
        """Have `sandbox` closed a moment later."""
        self._begin()
        loop = asyncio.get_running_loop()
        self._waiting[sandbox] = loop.call_later(self._delay_s, self._start, sandbox)

    def add_now(self, sandbox: Sandbox) -> None:
        """Have `sandbox` closed now, as no answer is to leave first."""
        self._begin()
        self._start(sandbox)

    async def close(self) -> None:
        """Close everything that is left and wait until it is gone, or `close_s` per sandbox are over."""
        for sandbox, timer in tuple(self._waiting.items()):
            timer.cancel()
            self._start(sandbox)
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _start(self, sandbox: Sandbox) -> None:
        self._waiting.pop(sandbox, None)
        task = asyncio.get_running_loop().create_task(self._destroy(sandbox))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _destroy(self, sandbox: Sandbox) -> None:
        try:
            async with asyncio.timeout(self._close_s):
                await sandbox.close()
        except Exception:
            self.lost += 1
            log.exception("a sandbox could not be destroyed; it stays counted as dying")
        else:
            self._end()
