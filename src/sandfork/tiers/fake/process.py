"""What a program of the fake tier can do, and the way out of one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from sandfork.model import Display, Outcome, Step, Stream
from sandfork.tiers.base import OutputSink

if TYPE_CHECKING:
    from sandfork.tiers.fake.guest import FakeGuest

Program = Callable[["FakeProcess"], Awaitable[int]]


class Stopped(Exception):  # not an error: the way out of a program that was killed or ended itself
    """The step is over: by `exit`, by a signal, or from outside. `dead` says that the process is, too."""

    def __init__(self, outcome: Outcome, exit_code: int | None, signal: int | None = None, *, dead: bool) -> None:
        super().__init__(outcome)
        self.outcome = outcome
        self.exit_code = exit_code
        self.signal = signal
        self.dead = dead


class FakeProcess:
    """One step's program at work in a process, which it knows as `guest`."""

    def __init__(self, guest: FakeGuest, step: Step, sink: OutputSink) -> None:
        self.step = step
        self.guest = guest
        self.contents = guest.home.files.contents
        self._sink = sink

    async def write(self, data: bytes, stream: Stream = Stream.STDOUT) -> None:
        """Write to a stream, a terminal's only one; waits while the reader has paused."""
        self.guest.check()
        if data and not self._sink.output(Stream.STDOUT if self.guest.terminal else stream, data):
            await self.guest.pause()
        self.guest.check()

    def show(self, text: str) -> None:
        """Show a rich value, if those are wanted."""
        if self.step.rich:
            self._sink.display(Display("display", {"text/plain": text}))

    async def read(self) -> bytes:
        """Return what is there of stdin, once there is something; no bytes at its end."""
        stdin = self.guest.stdin
        await self.guest.wait_for(lambda: bool(stdin.content) or not stdin.open)
        return stdin.take(len(stdin.content))

    async def read_line(self) -> bytes:
        """Return a line of stdin with its newline, once it is there; at its end what is left."""
        stdin = self.guest.stdin
        await self.guest.wait_for(lambda: b"\n" in stdin.content or not stdin.open)
        return stdin.take(stdin.content.find(b"\n") + 1 or len(stdin.content))

    async def sleep(self, delay_s: float) -> None:
        """Let time pass."""
        over = False

        def ring() -> None:
            nonlocal over
            over = True
            self.guest.wake()

        timer = asyncio.get_running_loop().call_later(delay_s, ring)
        try:
            await self.guest.wait_for(lambda: over)
        finally:
            timer.cancel()
