"""An engine over a fake tier, for tests on a virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from sandfork.engine.engine import Engine, EngineSettings
from sandfork.languages.catalogue import Catalogue
from sandfork.model import (
    Caller,
    Display,
    ExecPlan,
    ExecRequest,
    ExecResult,
    LimitsOverride,
    SessionKey,
    SessionSpec,
    SessionUse,
    Snippet,
    Stream,
)
from sandfork.tiers.base import OutputSink, StepEnd
from sandfork.tiers.fake import FakeSandbox, FakeTier
from tests.support.clock import settle, virtual_loop

CALLER = Caller("k1")
CATALOGUE = Catalogue.load()
FORK_S = 0.002
SETTINGS = EngineSettings()
KEY = SessionKey("native", "k1", "s")
USE = SessionUse("native", "s", SessionSpec())
ONLY_USE = SessionUse("native", "s")
"""The session of `KEY`: made when it is not there, or only used."""


def script(text: str, **change: object) -> ExecRequest:
    """Return the request that runs a script of the fake tier."""
    return replace(ExecRequest(Snippet("python", text)), **change)  # type: ignore[arg-type]


def limited(text: str, **limits: float) -> ExecRequest:
    """The same under limits of its own."""
    return script(text, limits=LimitsOverride(**limits))  # type: ignore[arg-type]


@dataclass
class Observed:
    """One call of the engine's observer."""

    caller: Caller
    plan: ExecPlan | None
    outcome: ExecResult | BaseException


class Rig:
    """An engine, its fake tier, and all its observer was told."""

    def __init__(
        self,
        settings: EngineSettings,
        pool: int,
        fork_s: float,
        close_s: float,
        now: Callable[[], float] | None = None,
        *,
        rates_cpus: bool = True,
    ) -> None:
        clock_ns = virtual_loop().time_ns
        self.observed: list[Observed] = []
        self.tier = FakeTier(rates_cpus=rates_cpus, fork_s=fork_s, close_s=close_s, clock_ns=clock_ns)
        self.engine = Engine(
            self.tier,
            CATALOGUE,
            {"python": pool, "python-numpy": 0, "node": 0, "perl": 0, "command": 0},
            settings,
            observe=lambda *told: self.observed.append(Observed(*told)),
            clock_ns=clock_ns,
            now=now or virtual_loop().time,
        )

    async def run(self, text: str, **limits: float) -> ExecResult:
        return await self.engine.execute(limited(text, **limits), CALLER)

    async def step(self, text: str, use: SessionUse = USE, **change: object) -> ExecResult:
        """Run a script in a session."""
        return await self.engine.execute(script(text, session=use, **change), CALLER)

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many run, wait and are dying."""
        now = self.engine.statistics().admission
        return now.running, now.queued, now.dying


@asynccontextmanager
async def rig(
    settings: EngineSettings = SETTINGS,
    *,
    pool: int = 2,
    fork_s: float = FORK_S,
    close_s: float = 0.0,
    prepare: Callable[[Rig], None] | None = None,
    now: Callable[[], float] | None = None,
    rates_cpus: bool = True,
) -> AsyncIterator[Rig]:
    """Start an engine; close it at the end and see that no sandbox is left."""
    made = Rig(settings, pool, fork_s, close_s, now, rates_cpus=rates_cpus)
    if prepare is not None:
        prepare(made)
    await made.engine.start()
    while made.engine.statistics().pool[0].parked < pool and not made.tier.broken:
        await _pass_time()
    yield made
    await made.engine.close()
    assert not made.tier.alive, f"sandboxes left: {made.tier.alive}"
    assert made.counts[:2] == (0, 0)


async def _pass_time() -> None:
    virtual_loop().advance(FORK_S)
    await settle(2)


class Follower:
    """A sink that keeps chunks, and refuses more while `refuses` is set."""

    def __init__(self) -> None:
        self.chunks: list[tuple[Stream, bytes]] = []
        self.refuses = False

    def output(self, stream: Stream, data: bytes) -> bool:
        self.chunks.append((stream, data))
        return not self.refuses

    def display(self, shown: Display) -> None:
        """Nobody here wants rich values."""

    @property
    def size(self) -> int:
        return sum(len(data) for _, data in self.chunks)


async def hang(self: FakeSandbox, step: object, limits: object, sink: OutputSink) -> StepEnd:
    """Stand in for a tier that never answers, not even after a kill."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError
