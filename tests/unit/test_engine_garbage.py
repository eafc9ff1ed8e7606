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
from sandfork.model import LimitsOverride, SessionSpec, SessionUse
from tests.support.clock import in_virtual_time, pass_time
from tests.support.engine import CALLER, KEY, ONLY_USE, SETTINGS, USE, Rig, rig

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


async def run_in_session(it: Rig, text: str, use: SessionUse = USE, **limits: float) -> None:
    try:
        await it.step(text, use, limits=LimitsOverride(**limits))  # type: ignore[arg-type]
    except SandforkError:
        return


async def delete_under_a_program(it: Rig) -> None:
    tasks = [asyncio.ensure_future(run_in_session(it, "sleep 9", use)) for use in (USE, ONLY_USE)]
    await pass_time(0.1)
    await it.engine.sessions.delete(KEY)
    await asyncio.wait(tasks)
    await it.engine.sessions.delete(KEY)


async def go_away_in_session(it: Rig) -> None:
    task = asyncio.ensure_future(run_in_session(it, "flood 100000\nsleep 10"))
    await pass_time(0.1)
    task.cancel()
    await asyncio.wait([task])


async def fail_to_open(it: Rig) -> None:
    it.tier.broken["node"] = "no node here"
    try:
        await it.engine.sessions.create(replace(KEY, name="n"), CALLER, SessionSpec("node"))
    except SandforkError:
        return


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
        lambda it: run_in_session(it, "out hello"),
        lambda it: run_in_session(it, "sleep 9", wall_s=1),
        lambda it: run_in_session(it, "trap\nsleep 9", wall_s=1),
        lambda it: run_in_session(it, "lost"),
        lambda it: run_in_session(it, "out hello", replace(ONLY_USE, name="unknown")),
        lambda it: run_in_session(it, "out hello", replace(USE, fresh=True)),
        delete_under_a_program,
        go_away_in_session,
        fail_to_open,
    ],
    ids=[
        "exited",
        "timed out",
        "output limit",
        "guest lost",
        "invalid",
        "overloaded",
        "client gone",
        "session: exited",
        "session: interrupted",
        "session: killed",
        "session: lost",
        "session: unknown",
        "session: fresh",
        "session: deleted",
        "session: client gone",
        "session: not made",
    ],
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
