"""A fake sandbox: its first process, its files, and the processes that join it when it is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sandfork.errors import GuestLost
from sandfork.model import InputFile, Limits, Step
from sandfork.tiers.base import BEFORE_START, Collected, OutputSink, StepEnd
from sandfork.tiers.fake.files import FakeFiles
from sandfork.tiers.fake.guest import FakeGuest

if TYPE_CHECKING:
    from sandfork.tiers.fake.tier import FakeTier


class FakeSandbox(FakeGuest):
    """See `tiers.base.Sandbox`."""

    def __init__(self, tier: FakeTier, key: str, number: int) -> None:
        super().__init__(tier)
        self.key = key
        self.number = number
        self.image = tier.images.get(key, "")
        self.files = FakeFiles()
        self.limits: Limits | None = None
        self._guests: set[FakeGuest] = set()
        self._dead = False
        self._cleared_at_s = 0.0

    @property
    def home(self) -> FakeSandbox:
        """Itself."""
        return self

    def die(self) -> None:
        """Be found dead by the next `exec`."""
        self._dead = True

    async def exec(self, step: Step, limits: Limits, sink: OutputSink) -> StepEnd:
        """Play the step's program."""
        if self._dead:
            raise GuestLost("the fake sandbox is dead", step=BEFORE_START)
        return await super().exec(step, limits, sink)

    async def put(self, files: Sequence[InputFile]) -> None:
        """Write files."""
        self.files.put(files)

    async def collect(self, patterns: Sequence[str], max_bytes: int) -> Collected:
        """Read files by path or glob, in order of their paths."""
        return self.files.collect(patterns, max_bytes)

    async def keep(self, limits: Limits) -> None:
        """Have the sandbox outlive its programs."""
        self.limits = limits
        self.files.max_bytes = limits.disk_bytes

    def add(self, guest: FakeGuest) -> None:
        """Note a process that joins; a kill that is under way takes it, too."""
        self._guests.add(guest)
        if asyncio.get_running_loop().time() < self._cleared_at_s:
            guest.killed_along()

    def forget(self, guest: FakeGuest) -> None:
        """Forget a process that is closed."""
        self._guests.discard(guest)

    def clear(self, *, but: FakeGuest) -> None:
        """Kill the other processes of a sandbox that is kept, which takes the tier's `close_s`."""
        if self.limits is None:
            return
        self._cleared_at_s = asyncio.get_running_loop().time() + self._tier.close_s
        for guest in (self, *self._guests):
            if guest is not but:
                guest.killed_along()

    async def cleared(self) -> None:
        """Wait until what `kill` began is done."""
        left_s = self._cleared_at_s - asyncio.get_running_loop().time()
        if left_s > 0:
            await asyncio.sleep(left_s)
        self._check_open()

    def _check_open(self) -> None:
        if self.files.closed:
            raise GuestLost("the fake sandbox is closed")

    def release(self) -> bool:
        """End every process in it; False when that was done before."""
        self.files.closed = True
        for guest in self._guests:
            guest.release()
        return super().release()

    async def close(self) -> None:
        """Destroy the sandbox and every process in it."""
        guests = tuple(self._guests)
        await super().close()
        self._tier.alive.difference_update(guests)
