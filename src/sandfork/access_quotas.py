"""Quotas: so many executions in a window of time, counted exactly, with a standing that can be told.

A window begins with the first execution that is counted in it. Unlike a token bucket, which lets more through while it
is being emptied, it refuses the one after the last however slowly they come.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Quota:
    """At most `limit` executions in `window_s` seconds, of one address or of one key."""

    limit: int
    window_s: float
    per: Literal["address", "key"]


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a caller stands with the quota it will reach first; `reset_s` seconds from now it is whole again."""

    limit: int
    remaining: int
    reset_s: float


Share = tuple[str, Quota]
"""A subject, by its name, and a quota of its own."""


class Windows:
    """Counts by share, at most `max_shares` of them; the one longest unused is forgotten first.

    A cost above the limit is let through at the start of a window, which then lasts as many times longer: what was
    asked for is what is charged.
    """

    def __init__(self, clock: Callable[[], float], max_shares: int) -> None:
        self._clock = clock
        self._max_shares = max_shares
        self._windows: OrderedDict[Share, tuple[int, float]] = OrderedDict()  # used, and the instant of its end

    def __len__(self) -> int:
        return len(self._windows)

    def wait_s(self, shares: Sequence[Share], cost: int) -> float:
        """Return 0 when `cost` can be taken of every share, else the seconds until it can."""
        now = self._clock()
        longest = 0.0
        for share in shares:
            used, end = self._windows.get(share, (0, now))
            if now < end and used + cost > share[1].limit:
                longest = max(longest, end - now)
        return longest

    def take(self, shares: Sequence[Share], cost: int) -> None:
        """Count `cost` in every share, which `wait_s` has allowed."""
        now = self._clock()
        for share in shares:
            quota = share[1]
            used, end = self._windows.get(share, (0, now))
            if now >= end:
                used, end = 0, now + quota.window_s * max(1, -(-cost // quota.limit))
            self._windows[share] = (used + cost, end)
            self._windows.move_to_end(share)
            if len(self._windows) > self._max_shares:
                self._windows.popitem(last=False)

    def standing(self, shares: Sequence[Share]) -> Standing | None:
        """Return the standing with the share of which least is left, None when there are no shares."""
        now = self._clock()
        standings = [self._standing(share, now) for share in shares]
        return min(standings, key=lambda each: each.remaining, default=None)

    def _standing(self, share: Share, now: float) -> Standing:
        quota = share[1]
        used, end = self._windows.get(share, (0, now))
        if now >= end:
            return Standing(quota.limit, quota.limit, quota.window_s)
        return Standing(quota.limit, max(0, quota.limit - used), end - now)
