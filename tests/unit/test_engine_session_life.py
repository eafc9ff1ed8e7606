"""How sessions begin and end: bounds, timers, deletion, failures while they open, draining and closing."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

import pytest

from sandfork.engine.sessions import SessionSettings
from sandfork.errors import (
    Draining,
    Forbidden,
    ForkFailed,
    InvalidRequest,
    Overloaded,
    SessionConflict,
    SessionNotFound,
    TemplateFailed,
    TierError,
    UnknownLanguage,
)
from sandfork.model import Caller, ExecRequest, LimitsOverride, Outcome, SessionKey, SessionSpec, SessionUse, Snippet
from sandfork.tiers.fake import FakeSandbox
from tests.support.clock import in_virtual_time, pass_time, settle, virtual_loop
from tests.support.engine import CALLER, FORK_S, KEY, ONLY_USE, SETTINGS, USE, Rig, rig, script

FEW = replace(SETTINGS, sessions=SessionSettings(most=3, most_of_one=2))
SHORT = replace(SETTINGS, sessions=SessionSettings(idle_s=10, lifetime_s=100))


def is_there(it: Rig, key: SessionKey = KEY) -> bool:
    try:
        it.engine.sessions.state(key)
    except SessionNotFound:
        return False
    return True


def named(name: str) -> SessionKey:
    return replace(KEY, name=name)


# --- making ---


@in_virtual_time
async def test_a_session_that_was_made_says_what_it_is() -> None:
    async with rig() as it:
        spec = SessionSpec("py", limits=LimitsOverride(pids=7), lifetime_s=50, metadata={"a": "b"})
        before_s = virtual_loop().time()
        state = await it.engine.sessions.create(KEY, CALLER, spec)
        assert (state.name, state.language, state.limits.pids, state.metadata) == ("s", "python", 7, {"a": "b"})
        assert (state.busy, state.executions) == (False, 0)
        assert before_s <= state.created_s <= state.last_used_s
        assert state.expires_s == state.created_s + 50
        assert it.engine.sessions.state(KEY) == state
        assert it.engine.statistics().sessions == 1
        assert (await it.step("out a", ONLY_USE)).stdout == b"a\n"


@in_virtual_time
async def test_a_session_without_a_language_is_made_for_commands() -> None:
    async with rig() as it:
        assert (await it.engine.sessions.create(KEY, CALLER, SessionSpec())).language == "command"
        assert (await it.step("out a", ONLY_USE)).stdout == b"a\n"


@in_virtual_time
async def test_what_a_session_cannot_be_is_refused_and_leaves_nothing() -> None:
    async with rig() as it:
        create = it.engine.sessions.create
        for key in (named(""), named("x" * 201), named("a\nb")):
            with pytest.raises(InvalidRequest):
                await create(key, CALLER, SessionSpec())
        for bad in (0, -1, math.nan, math.inf):
            with pytest.raises(InvalidRequest):
                await create(KEY, CALLER, SessionSpec(lifetime_s=bad))
            with pytest.raises(InvalidRequest):
                await create(KEY, CALLER, SessionSpec(idle_s=bad))
        with pytest.raises(InvalidRequest):
            await create(KEY, CALLER, SessionSpec(env=(("1", ""),)))
        with pytest.raises(UnknownLanguage):
            await create(KEY, CALLER, SessionSpec("klingon"))
        with pytest.raises(Forbidden):
            await create(KEY, CALLER, SessionSpec(limits=LimitsOverride(memory_bytes=1 << 50)))
        assert len(it.engine.sessions) == 0


@in_virtual_time
async def test_a_name_is_taken_once_and_each_owner_and_space_has_its_own() -> None:
    async with rig() as it:
        await it.step("set x one")
        with pytest.raises(SessionConflict):
            await it.engine.sessions.create(KEY, CALLER, SessionSpec())
        for other in (replace(KEY, owner="k2"), replace(KEY, space="isol8")):
            with pytest.raises(SessionNotFound):
                it.engine.sessions.state(other)
            with pytest.raises(SessionNotFound):
                await it.engine.sessions.delete(other)
            with pytest.raises(SessionNotFound):
                it.engine.sessions.interrupt(other)
        with pytest.raises(SessionNotFound):
            await it.engine.execute(script("get x", session=ONLY_USE), Caller("k2"))
        theirs = await it.engine.execute(script("get x", session=USE), Caller("k2"))
        assert theirs.exit_code == 1


@in_virtual_time
async def test_an_execution_makes_a_session_only_if_it_says_so() -> None:
    async with rig() as it:
        with pytest.raises(SessionNotFound):
            await it.step("out a", ONLY_USE)
        await it.step("out a")
        assert (await it.step("out a", ONLY_USE)).exit_code == 0


@in_virtual_time
async def test_requests_at_once_that_make_one_session_make_one() -> None:
    async with rig(pool=0) as it:
        results = await asyncio.gather(*(it.step(f"set x{n} {n}") for n in range(8)))
        assert {result.exit_code for result in results} == {0}
        assert it.tier.forked == 1
        assert (await it.step("\n".join(f"get x{n}" for n in range(8)))).exit_code == 0


@in_virtual_time
async def test_there_are_so_many_sessions_at_most_and_so_many_of_one_owner() -> None:
    async with rig(FEW) as it:
        create = it.engine.sessions.create
        made = await asyncio.gather(
            *(create(named(str(n)), CALLER, SessionSpec()) for n in range(4)), return_exceptions=True
        )
        refused = [each for each in made if isinstance(each, Overloaded)]
        assert (len(refused), len(it.engine.sessions)) == (2, 2)
        assert all(each.retry_after_s for each in refused)
        other = SessionKey("native", "k2", "s")
        await create(other, Caller("k2"), SessionSpec())
        with pytest.raises(Overloaded, match="all 3 sessions") as caught:
            await create(replace(other, name="t"), Caller("k2"), SessionSpec())
        assert caught.value.retry_after_s
        await it.engine.sessions.delete(named("0"))
        await create(replace(other, name="t"), Caller("k2"), SessionSpec())


@in_virtual_time
async def test_sessions_are_listed_to_their_owner_the_oldest_first() -> None:
    async with rig() as it:
        for name in ("b", "a"):
            await it.step("out x", replace(USE, name=name))
        await it.engine.execute(script("out x", session=USE), Caller("k2"))
        assert [state.name for state in it.engine.sessions.list("native", "k1")] == ["b", "a"]
        assert it.engine.sessions.list("isol8", "k1") == []


# --- failing while it opens ---


@in_virtual_time
async def test_a_session_whose_template_cannot_be_made_is_not_there_afterwards() -> None:
    async with rig() as it:
        it.tier.broken["node"] = "no node here"
        request = ExecRequest(Snippet("node", "out a"), session=USE)
        results = await asyncio.gather(*(it.engine.execute(request, CALLER) for _ in range(3)), return_exceptions=True)
        assert {type(result) for result in results} == {TemplateFailed}
        assert len(it.engine.sessions) == 0
        assert (await it.step("out a")).exit_code == 0


@pytest.mark.parametrize("failures", [1, 2])
@in_virtual_time
async def test_a_sandbox_that_cannot_be_kept_is_replaced_once(failures: int) -> None:
    keep, left = FakeSandbox.keep, [True] * failures

    async def fail(self: FakeSandbox, limits: object) -> None:
        if left:
            left.pop()
            raise TierError("setting limits failed")
        await keep(self, limits)  # type: ignore[arg-type]

    async with rig() as it:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FakeSandbox, "keep", fail)
            if failures == 2:
                with pytest.raises(TierError):
                    await it.step("out a")
            else:
                assert (await it.step("out a")).exit_code == 0
        assert len(it.engine.sessions) == 2 - failures
        await pass_time(1)
        assert len(it.tier.alive) == it.engine.statistics().pool[0].parked + 2 - failures


@in_virtual_time
async def test_a_client_that_goes_away_while_its_session_opens_leaves_nothing() -> None:
    async with rig(pool=0, fork_s=5) as it:
        going = asyncio.ensure_future(it.engine.sessions.create(KEY, CALLER, SessionSpec("python")))
        by_execution = asyncio.ensure_future(it.step("out a", replace(USE, name="t")))
        await pass_time(1)
        assert len(it.engine.sessions) == 2
        going.cancel()
        by_execution.cancel()
        await settle()
        assert len(it.engine.sessions) == 0
        await pass_time(10)
        assert not it.tier.alive


@in_virtual_time
async def test_a_session_deleted_while_it_opens_is_not_made() -> None:
    async with rig(pool=0, fork_s=5) as it:
        opening = asyncio.ensure_future(it.engine.sessions.create(KEY, CALLER, SessionSpec("python")))
        await pass_time(1)
        await it.engine.sessions.delete(KEY)
        with pytest.raises(SessionNotFound, match="deleted"):
            await opening
        await pass_time(10)
        assert not it.tier.alive
        assert not virtual_loop().live_timers()


@in_virtual_time
async def test_closing_while_a_session_opens_leaves_nothing() -> None:
    async with rig(pool=0, fork_s=5) as it:
        opening = asyncio.ensure_future(it.step("out a"))
        await pass_time(1)
        await it.engine.close()
        with pytest.raises((SessionNotFound, Draining)):
            await opening


# --- ending ---


@in_virtual_time
async def test_a_session_ends_when_it_was_not_used_for_its_idle_time() -> None:
    async with rig(SHORT) as it:
        await it.step("out a")
        await pass_time(9)
        it.engine.sessions.list("native", "k1")
        assert is_there(it)
        await it.step("out a")
        await pass_time(9)
        await it.engine.sessions.list_files(KEY, "")
        await pass_time(9.9)
        assert is_there(it)
        await pass_time(0.2)
        assert not is_there(it)
        await pass_time(1)
        assert len(it.tier.alive) == it.engine.statistics().pool[0].parked
        with pytest.raises(SessionNotFound):
            await it.step("out a", ONLY_USE)


@in_virtual_time
async def test_a_session_made_for_less_idle_time_has_less_and_for_more_has_more() -> None:
    async with rig(SHORT) as it:
        for name, idle_s in (("less", 2.0), ("more", 20.0)):
            await it.engine.sessions.create(named(name), CALLER, SessionSpec(idle_s=idle_s))
        await pass_time(3)
        assert not is_there(it, named("less"))
        await pass_time(16)
        assert is_there(it, named("more"))
        await pass_time(2)
        assert not is_there(it, named("more"))


@in_virtual_time
async def test_a_session_is_in_use_while_something_runs_in_it() -> None:
    async with rig(SHORT) as it:
        await it.step("out a")
        running = asyncio.ensure_future(it.step("sleep 25\nset x one"))
        await pass_time(24)
        assert is_there(it)
        await running
        await pass_time(9)
        assert (await it.step("get x", ONLY_USE)).stdout == b"one\n"


@in_virtual_time
async def test_a_session_ends_with_its_lifetime_even_while_something_runs_in_it() -> None:
    async with rig(SHORT) as it:
        state = await it.engine.sessions.create(KEY, CALLER, SessionSpec("python", lifetime_s=7))
        assert state.expires_s == state.created_s + 7
        began = virtual_loop().time()
        with pytest.raises(SessionNotFound, match="lifetime"):
            await it.step("sleep 25", ONLY_USE)
        assert virtual_loop().time() - began <= 7
        assert not is_there(it)
        long = await it.engine.sessions.create(KEY, CALLER, SessionSpec(lifetime_s=1e9))
        assert long.expires_s == long.created_s + 100


@in_virtual_time
async def test_deleting_a_session_fails_what_runs_and_waits_in_it() -> None:
    async with rig() as it:
        await it.step("set x one")
        running = asyncio.ensure_future(it.step("sleep 100"))
        await settle()
        waiting = asyncio.ensure_future(it.step("get x", ONLY_USE))
        making = asyncio.ensure_future(it.step("get x"))
        await settle()
        await it.engine.sessions.delete(KEY)
        for task in (running, waiting):
            with pytest.raises(SessionNotFound):
                await task
        assert (await making).exit_code == 1
        assert is_there(it)
        await pass_time(1)
        assert len(it.tier.alive) == it.engine.statistics().pool[0].parked + 1


@in_virtual_time
async def test_deleting_a_session_fails_a_program_that_heeds_nothing_and_one_whose_process_is_forked() -> None:
    async with rig() as it:
        await it.step("set x one")
        running = asyncio.ensure_future(it.step("trap\nsleep 100"))
        await settle()
        await it.engine.sessions.delete(KEY)
        with pytest.raises(SessionNotFound, match="deleted"):
            await running
        await it.step("set x one")
        it.tier.fork_s = 5
        forking = asyncio.ensure_future(it.step("out a", replace(USE, fresh=True)))
        await pass_time(1)
        await it.engine.sessions.delete(KEY)
        with pytest.raises(SessionNotFound, match="deleted"):
            await forking


@in_virtual_time
async def test_each_who_asks_for_a_session_that_ended_gets_an_error_of_its_own() -> None:
    async with rig() as it:
        await it.step("out a")
        running = [asyncio.ensure_future(it.step("sleep 100", ONLY_USE)) for _ in range(3)]
        await settle()
        await it.engine.sessions.delete(KEY)
        errors = await asyncio.gather(*running, return_exceptions=True)
        assert {type(error) for error in errors} == {SessionNotFound}
        assert len({id(error) for error in errors}) == 3


@in_virtual_time
async def test_an_interrupt_from_outside_ends_the_step_and_keeps_the_state() -> None:
    async with rig() as it:
        await it.step("set x one")
        it.engine.sessions.interrupt(KEY)  # nothing runs
        running = asyncio.ensure_future(it.step("sleep 100"))
        await settle()
        it.engine.sessions.interrupt(KEY)
        result = await running
        assert (result.outcome, result.exit_code, result.state_lost) == (Outcome.EXITED, 130, False)
        assert (await it.step("get x")).stdout == b"one\n"


# --- draining and closing ---


@in_virtual_time
async def test_while_the_server_drains_no_session_is_made_and_what_runs_ends() -> None:
    async with rig() as it:
        running = asyncio.ensure_future(it.step("sleep 2\nout a"))
        await settle()
        waiting = asyncio.ensure_future(it.step("out b"))
        draining = asyncio.ensure_future(it.engine.drain(10))
        await settle()
        with pytest.raises(Draining):
            await it.engine.sessions.create(named("t"), CALLER, SessionSpec())
        with pytest.raises(Draining):
            await it.step("out c", SessionUse("native", "t", SessionSpec()))
        await draining
        assert (await running).stdout == b"a\n"
        with pytest.raises(Draining):
            await waiting


@in_virtual_time
async def test_what_is_not_over_when_draining_ends_fails_with_draining() -> None:
    async with rig() as it:
        running = asyncio.ensure_future(it.step("trap\nsleep 100"))
        await settle()
        await it.engine.drain(3)
        with pytest.raises(Draining):
            await running


@in_virtual_time
async def test_closing_ends_every_session_and_leaves_nothing() -> None:
    async with rig(close_s=1) as it:
        running = asyncio.ensure_future(it.step("sleep 100"))
        for name in ("a", "b"):
            await it.engine.sessions.create(named(name), CALLER, SessionSpec())
        await settle()
        await it.engine.close()
        with pytest.raises(Draining):
            await running
        assert not it.tier.alive
        assert len(it.engine.sessions) == 0


@in_virtual_time
async def test_a_fork_that_fails_for_a_while_does_not_end_a_session() -> None:
    async with rig() as it:
        await it.step("set x one")
        it.tier.failing_forks = 1
        began = virtual_loop().time()
        assert (await it.step("out a", replace(USE, fresh=True))).stdout == b"a\n"
        assert virtual_loop().time() - began == pytest.approx(2 * FORK_S)
        assert (await it.step("get x")).stdout == b"one\n"
        it.tier.failing_forks = 1000
        with pytest.raises(ForkFailed):
            await it.engine.sessions.create(named("t"), CALLER, SessionSpec("node"))
        assert not is_there(it, named("t"))
        it.tier.failing_forks = 0
