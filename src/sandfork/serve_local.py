"""A private service for one execution in this process: the tier and the engine, no HTTP, no pool."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from dataclasses import replace

import uvloop

from sandfork.config import Config, Loaded
from sandfork.model import Caller, Display, ExecRequest, ExecResult, Stream
from sandfork.serve_engine import build_engine, choose_languages
from sandfork.serve_log import set_up_logging
from sandfork.serve_tier import open_tier

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
    config = _without_pools(loaded.config)
    set_up_logging("warning")
    catalogue = choose_languages(config)
    tier = open_tier(config, catalogue, tier_name)

    async def run() -> ExecResult:
        async with AsyncExitStack() as undo:
            undo.push_async_callback(tier.close)
            await tier.start()
            engine = build_engine(config, catalogue, tier)
            undo.push_async_callback(engine.close)
            return await engine.execute(request, CALLER, Passthrough())

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


def _without_pools(config: Config) -> Config:
    """Return `config` with nothing parked ahead; an explicit 0 of a template stays what it is."""
    return replace(config, pool=replace(config.pool, size=0, sizes={}))
