"""Looking at a program that is no short one: its output is read as it comes, and its processor time counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandfork.linux.cgroup import Mark
    from sandfork.tiers.process.slots import Tenancy
    from sandfork.tiers.process.streams import Streams
    from sandfork.tiers.process.terminal import TerminalStreams

_WATCH_AFTER_S = 0.002  # a program shorter than this is read once, at its end
_LOOK_S = 0.02


class Watch:
    """Watches one step; `spent` is called once its processor time is used up."""

    __slots__ = ("_cpu_s", "_loop", "_since", "_slot", "_spent", "_streams", "_timer")

    def __init__(self, slot: Tenancy, streams: Streams | TerminalStreams, spent: Callable[[], None]) -> None:
        self._slot = slot
        self._streams = streams
        self._spent = spent
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._cpu_s = 0.0
        self._since: Mark | None = None

    def begin(self, cpu_s: float, since: Mark | None, *, live: bool = False) -> None:
        """Watch from a moment after now on; the time counts since the mark, else since the slot's baseline.

        Output is read from now on if somebody waits for it (`live`).
        """
        self._cpu_s = cpu_s
        self._since = since
        if live:
            self._streams.watch()
        self._timer = self._loop.call_later(_WATCH_AFTER_S, self._look if live else self._look_first)

    def _look_first(self) -> None:
        self._streams.watch()
        self._look()

    def _look(self) -> None:
        """Look again when the limit could be reached at the earliest, with every core busy."""
        left_s = self._cpu_s - self._slot.meter.cpu_ns(self._since) / 1e9
        if left_s <= 0:
            self._spent()
        else:
            self._timer = self._loop.call_later(max(_LOOK_S, left_s / self._slot.cores), self._look)

    def end(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._streams.unwatch()
