"""What an execution leaves in memory: nothing that waits for the collector.

Output is held by the objects of its execution. Were they tied in a knot, megabytes of it would pile up until a
collection came round.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from dataclasses import replace

import pytest

from sandfork.engine.admission import AdmissionSettings
from sandfork.errors import SandforkError
from tests.support.clock import in_virtual_time, pass_time
from tests.support.engine import SETTINGS, Rig, rig

ONE_AND_NO_QUEUE = replace(SETTINGS, admission=AdmissionSettings(max_running=1, max_queued=0))


async def run(it: Rig, text: str, **limits: float) -> None:
    try:
        await it.run(text, **limits)
    except SandforkError:
        return


async def run_two_at_once(it: Rig) -> None:
    await asyncio.gather(run(it, "sleep 1"), run(it, "out refused"))


async def cut_off(it: Rig) -> None:
    task = asyncio.ensure_future(it.run("flood 100000\nsleep 10"))
    await pass_time(0.1)
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.parametrize(
    "what",
    [
        lambda it: run(it, "out hello"),
        lambda it: run(it, "sleep 9", wall_s=1),
        lambda it: run(it, "flood 1000", output_bytes=10),
        lambda it: run(it, "lost"),
        lambda it: run(it, "", pids=-1),
        run_two_at_once,
        cut_off,
    ],
    ids=["exited", "timed out", "output limit", "guest lost", "invalid", "overloaded", "client gone"],
)
@in_virtual_time
async def test_what_an_execution_held_is_freed_when_it_is_over(what: object) -> None:
    assert callable(what)
    async with rig(ONE_AND_NO_QUEUE) as it:
        await what(it)
        await pass_time(1)
        it.observed.clear()
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            await what(it)
            await pass_time(1)
            it.observed.clear()
            gc.collect()
            knots = Counter(type(thing).__name__ for thing in gc.garbage if _is_ours(thing))
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
        assert not knots


def _is_ours(thing: object) -> bool:
    return type(thing).__module__.startswith("sandfork.")
