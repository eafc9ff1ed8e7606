"""Secrets of an execution: masked in what is kept and in what is followed, behind the cap, and also where it is cut."""

from __future__ import annotations

import asyncio

import pytest

from sandfork.engine.masking import MAX_SECRETS_BYTES
from sandfork.errors import InvalidRequest
from sandfork.model import LimitsOverride, Outcome, SessionSpec, SessionUse, Stream
from tests.support.clock import in_virtual_time, settle
from tests.support.engine import CALLER, Follower, rig, script

SECRETS = ("hunter2",)


@in_virtual_time
async def test_output_that_is_kept_has_no_secret_in_it() -> None:
    async with rig() as it:
        result = await it.engine.execute(script("out a hunter2\nerr hunter2 b\nout hunt", secrets=SECRETS), CALLER)
        assert (result.stdout, result.stderr) == (b"a ***\nhunt\n", b"*** b\n")
        plain = await it.engine.execute(script("out a hunter2"), CALLER)
        assert plain.stdout == b"a hunter2\n"


@in_virtual_time
async def test_output_that_is_followed_has_no_secret_in_it_and_comes_whole() -> None:
    async with rig() as it:
        follower = Follower()
        await it.engine.execute(script("out a\nout hunter2", secrets=("hunter2\nmore", "a\nhunter2")), CALLER, follower)
        assert b"".join(data for stream, data in follower.chunks if stream is Stream.STDOUT) == b"***\n"


@in_virtual_time
async def test_the_cap_counts_what_the_program_wrote_and_leaves_no_beginning_of_a_secret() -> None:
    async with rig() as it:
        limits = LimitsOverride(output_bytes=10)
        result = await it.engine.execute(script("out -----hunter2", secrets=SECRETS, limits=limits), CALLER)
        assert (result.outcome, result.truncated, result.stdout) == (Outcome.OUTPUT_LIMIT, True, b"-----***")
        whole = await it.engine.execute(script("out hunter2--", secrets=SECRETS, limits=limits), CALLER)
        assert (whole.outcome, whole.truncated, whole.stdout) == (Outcome.EXITED, False, b"***--\n")


@in_virtual_time
async def test_what_a_killed_program_left_of_a_secret_is_masked() -> None:
    async with rig() as it:
        limits = LimitsOverride(wall_s=1.0)
        secrets = ("hunt\nhunter2",)
        late = await it.engine.execute(script("out hunt\nsleep 9", secrets=secrets, limits=limits), CALLER)
        assert (late.outcome, late.stdout) == (Outcome.TIMED_OUT, b"***")
        ended = await it.engine.execute(script("out hunt", secrets=secrets, limits=limits), CALLER)
        assert (ended.outcome, ended.stdout) == (Outcome.EXITED, b"hunt\n")


@in_virtual_time
async def test_secrets_are_masked_in_a_session_too() -> None:
    async with rig() as it:
        for fresh in (True, False):
            session = SessionUse("isol8", f"s{fresh}", SessionSpec(), fresh=fresh)
            for _ in range(2):
                request = script("out hunter2", secrets=SECRETS, session=session)
                assert (await it.engine.execute(request, CALLER)).stdout == b"***\n"


@in_virtual_time
async def test_secrets_too_large_to_look_for_are_refused_and_nothing_runs() -> None:
    async with rig() as it:
        with pytest.raises(InvalidRequest, match="secrets"):
            await it.engine.execute(script("out a", secrets=("x" * (MAX_SECRETS_BYTES + 1),)), CALLER)
        assert it.counts == (0, 0, 0)


@in_virtual_time
async def test_a_result_says_when_its_execution_was_taken_up() -> None:
    now_s = [1000.0]
    async with rig(now=lambda: now_s[0]) as it:
        running = asyncio.ensure_future(it.run("sleep 1"))
        await settle()
        now_s[0] = 2000.0
        assert (await running).started_s == 1000.0
        assert (await it.run("out a")).started_s == 2000.0
