"""What the tier contract stands on: the adapters it runs over, and what its tests work with.

Add a `TierCase` to `TIER_FACTORIES` and the whole contract runs over that adapter too.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

import pytest

from sandfork.model import Display, Limits, Step, Stream
from sandfork.tiers.base import Process, Sandbox, StepEnd, Tier
from sandfork.tiers.fake import FakeTier
from sandfork.tiers.process import ProcessTier
from tests.contract.programs import fake_step, python_step
from tests.support.clock import run_virtual
from tests.support.process import open_process_tier

LIMITS = Limits()
BOUND_S = 30.0
"""How long one test may take before something is thought to hang."""


@dataclass(frozen=True)
class TierCase:
    """One adapter: how to have it started and closed, what to fork, and how the programs are written for it.

    `left` counts what the tier still has alive; None where only the tests of the kernel can tell.
    """

    open: Callable[[], AbstractAsyncContextManager[Tier]]
    step: Callable[..., Step]
    key: str = "python"
    left: Callable[[Tier], int] | None = None
    run: Callable[[Awaitable[None]], None] = field(default=run_virtual)  # type: ignore[assignment]
    needs_root: bool = False


def run_in_real_time(main: Awaitable[None]) -> None:
    """Run a test of a tier whose programs take real time."""

    async def bounded() -> None:
        async with asyncio.timeout(BOUND_S):
            await main

    asyncio.run(bounded())


@asynccontextmanager
async def open_fake() -> AsyncIterator[Tier]:
    tier = FakeTier(keys=("python",), fork_s=0.001, close_s=0.001)
    await tier.start()
    yield tier
    await tier.close()
    assert not tier.alive


def count_fake(tier: Tier) -> int:
    assert isinstance(tier, FakeTier)
    return len(tier.alive)


def count_process(tier: Tier) -> int:
    assert isinstance(tier, ProcessTier)
    return tier.live


TIER_FACTORIES: dict[str, TierCase] = {
    "fake": TierCase(open_fake, fake_step, left=count_fake),
    "process": TierCase(open_process_tier, python_step, left=count_process, run=run_in_real_time, needs_root=True),
}


class Recorder:
    """A sink that keeps everything, and can refuse more after each chunk until told to go on."""

    def __init__(self, *, pausing: bool = False) -> None:
        self.chunks: list[tuple[Stream, bytes]] = []
        self.displays: list[Display] = []
        self.written_before: list[bytes] = []
        self.pausing = pausing
        self.paused = False
        self.broken_promises = 0
        self.wrote = asyncio.Event()

    def output(self, stream: Stream, data: bytes) -> bool:
        self.broken_promises += self.paused
        self.chunks.append((stream, data))
        self.wrote.set()
        self.paused = self.pausing
        return not self.pausing

    def display(self, shown: Display) -> None:
        self.displays.append(shown)
        self.written_before.append(self.stdout)

    async def until(self, mark: bytes) -> None:
        """Wait until stdout holds `mark`."""
        while mark not in self.stdout:
            self.wrote.clear()
            await self.wrote.wait()

    def of(self, stream: Stream) -> bytes:
        return b"".join(data for name, data in self.chunks if name == stream)

    @property
    def stdout(self) -> bytes:
        return self.of(Stream.STDOUT)

    @property
    def stderr(self) -> bytes:
        return self.of(Stream.STDERR)


class Ground:
    """What a test of the contract works with: an open tier and its case."""

    def __init__(self, case: TierCase, tier: Tier) -> None:
        self.case = case
        self.tier = tier

    async def fork(self) -> Sandbox:
        template = await self.tier.template(self.case.key)
        return await template.fork()

    async def keep(self, limits: Limits = LIMITS) -> Sandbox:
        """Return a sandbox that outlives its programs."""
        sandbox = await self.fork()
        await sandbox.keep(limits)
        return sandbox

    async def join(self, sandbox: Sandbox, terminal: tuple[int, int] | None = None) -> Process:
        template = await self.tier.template(self.case.key)
        return await template.join(sandbox, terminal=terminal)

    async def run_in(self, process: Process, name: str, **change: object) -> tuple[StepEnd, Recorder]:
        """Run one step in a process there is."""
        sink = Recorder()
        return await process.exec(self.case.step(name, **change), LIMITS, sink), sink

    async def begin_in(self, process: Process, name: str, sink: Recorder, **change: object) -> asyncio.Task[StepEnd]:
        """Start one step in a process there is and return once it has written something."""
        task = asyncio.get_running_loop().create_task(process.exec(self.case.step(name, **change), LIMITS, sink))
        await sink.wrote.wait()
        return task

    async def run(self, name: str, **change: object) -> tuple[StepEnd, Recorder]:
        """Run one program in a sandbox of its own."""
        sandbox, sink = await self.fork(), Recorder()
        try:
            return await sandbox.exec(self.case.step(name, **change), LIMITS, sink), sink
        finally:
            await sandbox.close()

    async def begin(self, name: str, sink: Recorder) -> tuple[Sandbox, asyncio.Task[StepEnd]]:
        """Start one program and return once it has written something."""
        sandbox = await self.fork()
        return sandbox, await self.begin_in(sandbox, name, sink)

    def assert_nothing_left(self) -> None:
        if self.case.left is not None:
            assert self.case.left(self.tier) == 0


def on_every_tier(test: Callable[[Ground], Awaitable[None]]) -> Callable[[TierCase], None]:
    """Make an async test a plain one that runs once for every adapter."""

    def run(case: TierCase) -> None:
        if case.needs_root and os.geteuid() != 0:
            pytest.skip("needs root")

        async def main() -> None:
            async with case.open() as tier:
                ground = Ground(case, tier)
                await test(ground)
                ground.assert_nothing_left()

        case.run(main())

    run.__name__ = test.__name__
    return pytest.mark.parametrize("case", TIER_FACTORIES.values(), ids=TIER_FACTORIES)(run)
