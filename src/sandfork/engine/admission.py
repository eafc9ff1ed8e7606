"""Admission: whether and when an execution may start.

At most `max_running` run at once. Who finds no slot waits in a bounded queue: one line per key, served in turn, so that
a key with a thousand requests waiting delays another's single one by one turn. When the queue is full the longest line
gives up its newest ticket, which is usually the newcomer itself. Nothing waits longer than `max_wait_s`.

A sandbox that has answered but is not yet destroyed is *dying*: it holds memory, so at most `max_dying` of them may
exist before new executions wait.

Everything here runs on the event loop's thread and changes state only between awaits, so there are no locks.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

from sandfork.errors import CapacityError, DeadlinePassed, Draining, Overloaded

RETRY_AT_LEAST_S = 0.1
RETRY_AT_MOST_S = 60.0
DRAIN_RETRY_S = 5.0
SMOOTHING = 0.1
"""Weight of the newest interval in the running mean that estimates how fast slots become free."""


@dataclass(frozen=True, slots=True)
class AdmissionSettings:
    """Bounds of admission: counts of executions, and seconds."""

    max_running: int = 32
    max_queued: int = 1024
    max_wait_s: float = 30.0
    max_dying: int = 64


@dataclass(frozen=True, slots=True)
class AdmissionStatistics:
    """A moment's counts, and the refusals since the start."""

    running: int
    queued: int
    dying: int
    refused: int
    expired: int


Ticket = asyncio.Future[None]


class Admission:
    """Slots for running executions and the queue before them.

    Use: `try_enter()`, and when that says no `await wait(key)`; then `leave()` exactly once.
    """

    def __init__(self, settings: AdmissionSettings) -> None:
        self._settings = settings
        self._running = 0
        self._dying = 0
        self._queued = 0
        self._lines: OrderedDict[str, OrderedDict[Ticket, None]] = OrderedDict()
        self._draining = False
        self._idle: list[asyncio.Future[None]] = []
        self._refused = 0
        self._expired = 0
        self._freed_at = 0.0
        self._interval_s = 0.0

    def try_enter(self) -> bool:
        """Take a slot if one is free, which it never stays while anybody waits. *Raises* Draining."""
        if self._draining:
            raise Draining("the server is shutting down", retry_after_s=DRAIN_RETRY_S)
        if not self._has_room():
            return False
        self._running += 1
        return True

    async def wait(self, key: str) -> None:
        """Wait for a slot in the line of `key` and take it. *Raises* Overloaded, DeadlinePassed, Draining."""
        ticket = self._enqueue(key)
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._settings.max_wait_s, self._expire, key, ticket)
        try:
            await ticket
        except asyncio.CancelledError:
            if ticket.done() and not ticket.cancelled() and ticket.exception() is None:
                self.leave()
            else:
                self._remove(key, ticket)
            raise
        finally:
            timer.cancel()
            del ticket  # it may hold the error that is about to hold this frame

    def leave(self) -> None:
        """Give a slot back and let the next in turn start."""
        self._running -= 1
        if self._queued:
            self._measure_interval()
            self._admit()
            return
        self._freed_at = 0.0
        self._announce_idle()

    def begin_dying(self) -> None:
        """Count a sandbox whose destruction is under way."""
        self._dying += 1

    def end_dying(self) -> None:
        """Count it off again."""
        self._dying -= 1
        if self._queued:
            self._admit()

    def drain(self) -> None:
        """Refuse newcomers from now on; who waits or runs goes on."""
        self._draining = True

    def refuse_waiting(self) -> None:
        """Fail everyone who waits, with Draining."""
        for key in tuple(self._lines):
            for ticket in tuple(self._lines.get(key, ())):
                self._fail(key, ticket, Draining("the server is shutting down", retry_after_s=DRAIN_RETRY_S))

    async def wait_idle(self) -> None:
        """Return once nothing runs or waits."""
        while self._running or self._queued:
            idle: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle.append(idle)
            await idle

    def statistics(self) -> AdmissionStatistics:
        """Return the counts of this moment."""
        return AdmissionStatistics(self._running, self._queued, self._dying, self._refused, self._expired)

    def retry_after_s(self) -> float:
        """Estimate when a newcomer would find room: the queue's length times the mean interval of freed slots."""
        estimate = (self._queued + 1) * self._interval_s
        return min(max(estimate, RETRY_AT_LEAST_S), RETRY_AT_MOST_S)

    def _has_room(self) -> bool:
        return self._running < self._settings.max_running and self._dying < self._settings.max_dying

    def _enqueue(self, key: str) -> Ticket:
        if self._queued >= self._settings.max_queued:
            self._make_place(key)
        ticket: Ticket = asyncio.get_running_loop().create_future()
        self._lines.setdefault(key, OrderedDict())[ticket] = None
        self._queued += 1
        return ticket

    def _make_place(self, key: str) -> None:
        """Push the newest ticket out of the longest line, or raise when that is the newcomer's own."""
        self._refused += 1
        longest = max(self._lines, key=lambda name: len(self._lines[name]), default=key)
        if longest == key or len(self._lines[longest]) <= len(self._lines.get(key, ())) + 1:
            raise self._overloaded()
        self._fail(longest, next(reversed(self._lines[longest])), self._overloaded())

    def _overloaded(self) -> Overloaded:
        return Overloaded("the server is busy and its queue is full", retry_after_s=self.retry_after_s())

    def _admit(self) -> None:
        """Start as many as there is room for: the oldest of each line, line after line."""
        while self._queued and self._has_room():
            key, line = self._lines.popitem(last=False)
            ticket, _ = line.popitem(last=False)
            self._queued -= 1
            if line:
                self._lines[key] = line
            if not ticket.done():
                self._running += 1
                ticket.set_result(None)
        self._announce_idle()

    def _expire(self, key: str, ticket: Ticket) -> None:
        self._expired += 1
        reason = f"waited {self._settings.max_wait_s:g} s in the queue without finding a free slot"
        self._fail(key, ticket, DeadlinePassed(reason, retry_after_s=self.retry_after_s()))

    def _fail(self, key: str, ticket: Ticket, error: CapacityError) -> None:
        self._remove(key, ticket)
        if not ticket.done():
            ticket.set_exception(error)

    def _remove(self, key: str, ticket: Ticket) -> None:
        line = self._lines.get(key)
        if line is None or ticket not in line:
            return
        del line[ticket]
        self._queued -= 1
        if not line:
            del self._lines[key]
        self._announce_idle()

    def _measure_interval(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._freed_at:
            sample = min(now - self._freed_at, RETRY_AT_MOST_S)
            self._interval_s += (sample - self._interval_s) * (SMOOTHING if self._interval_s else 1)
        self._freed_at = now

    def _announce_idle(self) -> None:
        if self._running or self._queued or not self._idle:
            return
        for idle in self._idle:
            if not idle.done():
                idle.set_result(None)
        self._idle.clear()
