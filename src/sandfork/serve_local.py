"""A private service in this process: the tier and the engine, no HTTP, no pool."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TypeVar

import uvloop

from sandfork.config import Config, Loaded
from sandfork.engine.engine import Engine
from sandfork.languages.catalogue import Catalogue
from sandfork.model import Caller, Display, ExecRequest, ExecResult, Stream
from sandfork.serve_engine import build_engine, choose_languages
from sandfork.serve_log import set_up_logging
from sandfork.serve_tier import open_tier

T = TypeVar("T")
CALLER = Caller(key_id="local")


class Passthrough:
    """Writes a program's output to our own stdout and stderr as it arrives."""

    def output(self, stream: Stream, data: bytes) -> bool:
        """Write a chunk; a reader that is slow holds the program up, one that is gone ends this process."""
        while data:
            data = data[os.write(int(stream), data) :]
        return True

    def display(self, shown: Display) -> None:
        """Nothing: no rich values are asked for here."""


def run_local(loaded: Loaded, tier_name: str, request: ExecRequest) -> ExecResult:
    """Run `request` and return its result, whose output has been written. *Raises* SandforkError, Refused."""

    async def run(engine: Engine) -> ExecResult:
        return await engine.execute(request, CALLER, Passthrough())

    return run_privately(loaded, tier_name, choose_languages(loaded.config), run)


def run_privately(loaded: Loaded, tier_name: str, catalogue: Catalogue, work: Callable[[Engine], Awaitable[T]]) -> T:
    """Do `work` with an engine that is there for it alone; root is given up. *Raises* SandforkError, Refused."""
    config = _without_pools(loaded.config)
    set_up_logging("warning")
    tier = open_tier(config, catalogue, tier_name)

    async def run() -> T:
        async with AsyncExitStack() as undo:
            undo.push_async_callback(tier.close)
            await tier.start()
            engine = build_engine(config, catalogue, tier)
            undo.push_async_callback(engine.close)
            return await work(engine)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


def _without_pools(config: Config) -> Config:
    """Return `config` with nothing parked ahead; an explicit 0 of a template stays what it is."""
    return replace(config, pool=replace(config.pool, size=0, sizes={}))
