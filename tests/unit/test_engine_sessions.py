"""Executions in sessions: what lasts, what an interrupt and a kill take, and whose turn it is."""

from __future__ import annotations

import asyncio
import errno
import math
from collections.abc import Awaitable
from dataclasses import replace

import pytest

from sandfork.engine.admission import AdmissionSettings
from sandfork.engine.sessions import SessionSettings
from sandfork.errors import (
    Draining,
    FileNotInSandbox,
    ForkFailed,
    GuestLost,
    InvalidRequest,
    Overloaded,
    SessionConflict,
    SessionNotFound,
)
from sandfork.model import (
    Command,
    ExecRequest,
    ExecResult,
    InputFile,
    Limits,
    LimitsOverride,
    Outcome,
    SessionSpec,
    SessionUse,
    Snippet,
    Stream,
)
from sandfork.tiers.base import BEFORE_START, OutputSink
from sandfork.tiers.fake import FakeFiles, FakeGuest, FakeSandbox
from tests.support.clock import in_virtual_time, pass_time, settle, virtual_loop
from tests.support.engine import CALLER, FORK_S, KEY, ONLY_USE, SETTINGS, USE, Follower, Rig, hang, rig, script

FRESH = replace(USE, fresh=True)
ONE_AT_A_TIME = replace(SETTINGS, admission=AdmissionSettings(max_running=1))
ONE_SECOND = LimitsOverride(wall_s=1)
GRACE_S = 0.25
"""What a program that may take one second has to heed an interrupt: a quarter of that."""


def begin(it: Rig, text: str, use: SessionUse = USE, **change: object) -> asyncio.Task[ExecResult]:
    return asyncio.ensure_future(it.step(text, use, **change))


def said(result: ExecResult) -> tuple[int, bytes]:
    return result.status, result.stdout


# --- what lasts ---


@in_virtual_time
async def test_an_interpreter_keeps_its_state_between_executions() -> None:
    async with rig() as it:
        first = await it.step("set x one\nexit 4")
        assert (first.exit_code, first.state_lost) == (4, False)
        assert said(await it.step("get x\nsleep 2")) == (0, b"one\n")
        state = it.engine.sessions.state(KEY)
        assert (state.executions, state.language, state.busy) == (2, "python", False)
        assert state.usage.wall_s == pytest.approx(2)


@in_virtual_time
async def test_each_language_of_a_session_has_an_interpreter_and_all_share_the_files() -> None:
    async with rig() as it:
        await it.step("set x one\nwrite f shared")
        node = ExecRequest(Snippet("node", "get x"), session=USE)
        assert (await it.engine.execute(node, CALLER)).exit_code == 1
        await it.engine.execute(replace(node, program=Snippet("node", "set x two\ncat f")), CALLER)
        assert said(await it.engine.execute(node, CALLER)) == (0, b"two\n")
        assert said(await it.step("get x\ncat f")) == (0, b"one\nshared")


@pytest.mark.parametrize(("language", "spoken"), [("node", "node"), ("python", "python"), (None, "python")])
@in_virtual_time
async def test_what_names_no_language_is_in_that_of_its_session(language: str | None, spoken: str) -> None:
    async with rig() as it:
        use = replace(USE, make=SessionSpec(language=language))
        first = ExecRequest(Snippet(None, "set x one"), session=use)
        await it.engine.execute(first, CALLER)
        second = ExecRequest(Snippet(spoken, "get x"), session=ONLY_USE)
        assert said(await it.engine.execute(second, CALLER)) == (0, b"one\n")
        unnamed = replace(second, program=Snippet(None, "get x"))
        assert said(await it.engine.execute(unnamed, CALLER)) == (0, b"one\n")
        assert it.engine.sessions.state(KEY).language == spoken


@in_virtual_time
async def test_a_fresh_process_sees_the_files_and_no_state_and_leaves_the_interpreter_alone() -> None:
    async with rig() as it:
        await it.step("set x one")
        assert (await it.step("get x", FRESH)).exit_code == 1
        assert said(await it.step("write f made\nset x other", FRESH)) == (0, b"")
        command = ExecRequest(Command(("sh", "cat f")), session=USE)
        assert said(await it.engine.execute(command, CALLER)) == (0, b"made")
        result = await it.step("get x")
        assert (said(result), result.state_lost) == ((0, b"one\n"), False)
        await settle()
        assert len(it.tier.alive) - it.engine.statistics().pool[0].parked == 1


@in_virtual_time
async def test_an_interpreter_that_ends_takes_its_state_and_nothing_else() -> None:
    async with rig() as it:
        await it.step("set x one\nwrite f kept")
        ended = await it.step("die 7")
        assert (ended.exit_code, ended.state_lost) == (7, True)
        result = await it.step("cat f\nget x")
        assert (said(result), result.state_lost) == ((1, b"kept"), False)


@in_virtual_time
async def test_stdin_that_is_kept_open_is_for_a_process_of_its_own() -> None:
    async with rig() as it:
        with pytest.raises(InvalidRequest):
            await it.step("read", keep_stdin=True)
        handles = []
        task = asyncio.ensure_future(
            it.engine.execute(script("read", session=FRESH, keep_stdin=True), CALLER, None, handles.append)
        )
        await settle()
        await handles[0].feed(b"line\n")
        assert said(await task) == (0, b"line\n")


# --- limits ---


@in_virtual_time
async def test_at_the_wall_limit_an_interpreter_is_interrupted_and_keeps_its_state() -> None:
    async with rig() as it:
        await it.step("set x one")
        result = await it.step("out begun\nsleep 100", limits=ONE_SECOND)
        assert (result.outcome, result.exit_code, result.state_lost) == (Outcome.TIMED_OUT, 130, False)
        assert result.stdout == b"begun\n"
        assert result.timings.exec_s == pytest.approx(1)
        assert said(await it.step("get x")) == (0, b"one\n")


@in_virtual_time
async def test_what_heeds_no_interrupt_is_killed_after_the_grace_with_all_in_the_session() -> None:
    async with rig() as it:
        await it.step("set x one\nwrite f kept")
        node = ExecRequest(Snippet("node", "set y two"), session=USE)
        await it.engine.execute(node, CALLER)
        result = await it.step("trap\nout begun\nsleep 100", limits=ONE_SECOND)
        assert (result.outcome, result.signal, result.state_lost) == (Outcome.TIMED_OUT, 9, True)
        assert result.timings.exec_s == pytest.approx(1 + GRACE_S)
        assert said(await it.step("cat f\nget x")) == (1, b"kept")
        other = await it.engine.execute(replace(node, program=Snippet("node", "get y")), CALLER)
        assert (other.exit_code, other.state_lost) == (1, True)


@in_virtual_time
async def test_an_interrupt_that_came_too_early_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig() as it:
        await it.step("set x one")
        heed, early = FakeGuest.signal, [True]

        def signal(self: FakeGuest, number: int) -> None:
            if not (early and early.pop()):
                heed(self, number)

        monkeypatch.setattr(FakeGuest, "signal", signal)
        result = await it.step("sleep 100", limits=ONE_SECOND)
        assert (result.outcome, result.state_lost) == (Outcome.TIMED_OUT, False)
        assert result.timings.exec_s == pytest.approx(1 + GRACE_S / 2)
        assert said(await it.step("get x")) == (0, b"one\n")


@in_virtual_time
async def test_a_fresh_program_is_killed_at_once_at_its_wall_limit() -> None:
    async with rig() as it:
        result = await it.step("sleep 100", FRESH, limits=ONE_SECOND)
        assert (result.outcome, result.signal, result.state_lost) == (Outcome.TIMED_OUT, 9, False)
        assert result.timings.exec_s == pytest.approx(1)


@in_virtual_time
async def test_a_limit_kill_says_that_state_is_lost_and_the_session_goes_on() -> None:
    async with rig() as it:
        for text, limits in (
            ("flood 1000\nsleep 9", LimitsOverride(output_bytes=10)),
            ("limit out_of_memory", ONE_SECOND),
        ):
            await it.step("set x one")
            result = await it.step(text, limits=limits)
            assert result.outcome in (Outcome.OUTPUT_LIMIT, Outcome.OUT_OF_MEMORY)
            assert result.state_lost
            assert (await it.step("get x")).exit_code == 1


@in_virtual_time
async def test_the_next_execution_waits_until_what_was_killed_is_gone() -> None:
    async with rig(close_s=3) as it:
        await it.step("limit cpu_limit")
        began = virtual_loop().time()
        await it.step("out next")
        assert virtual_loop().time() - began == pytest.approx(3 + FORK_S)


@in_virtual_time
async def test_limits_belong_to_the_session_but_those_that_each_execution_has_for_itself() -> None:
    spec = SessionSpec(limits=LimitsOverride(memory_bytes=64 << 20, pids=7, wall_s=2.0))
    use = replace(USE, make=spec)
    async with rig() as it:
        result = await it.step("out a", use, limits=LimitsOverride(wall_s=5, output_bytes=10))
        assert (result.limits.memory_bytes, result.limits.pids) == (64 << 20, 7)
        assert (result.limits.wall_s, result.limits.output_bytes) == (5, 10)
        assert it.engine.sessions.state(KEY).limits.memory_bytes == 64 << 20
        await it.step("out a", use, limits=LimitsOverride(memory_bytes=64 << 20))
        with pytest.raises(SessionConflict, match="memory_bytes"):
            await it.step("out a", use, limits=LimitsOverride(memory_bytes=65 << 20))
        assert (await it.step("out a", use)).limits.wall_s == Limits().wall_s


@in_virtual_time
async def test_processors_belong_to_the_session_and_not_to_an_execution() -> None:
    use = replace(USE, make=SessionSpec(limits=LimitsOverride(cpus=0.5)))
    async with rig() as it:
        for named in (None, 0.5):
            assert (await it.step("out a", use, limits=LimitsOverride(cpus=named))).limits.cpus == 0.5
        with pytest.raises(SessionConflict, match="cpus"):
            await it.step("out a", use, limits=LimitsOverride(cpus=1.0))


@in_virtual_time
async def test_where_no_quota_can_be_had_each_step_has_the_time_that_the_sessions_processors_could_give() -> None:
    use = replace(USE, make=SessionSpec(limits=LimitsOverride(cpus=0.5)))
    async with rig(rates_cpus=False) as it:
        limits = (await it.step("out a", use, limits=LimitsOverride(wall_s=10))).limits
        assert (limits.cpus, limits.cpu_s) == (math.inf, 5.0)
        assert it.engine.sessions.state(KEY).limits.cpus == math.inf


@in_virtual_time
async def test_the_environment_of_a_session_is_under_that_of_an_execution() -> None:
    use = replace(USE, make=SessionSpec(env=(("A", "session"), ("B", "session"))))
    async with rig() as it:
        assert said(await it.step("env A\nenv B", use, env=(("B", "own"),))) == (0, b"session\nown\n")


@in_virtual_time
async def test_a_session_of_one_language_takes_no_other() -> None:
    use = replace(USE, make=SessionSpec(one_language=True))
    async with rig() as it:
        await it.step("set x one", use)
        with pytest.raises(SessionConflict):
            await it.engine.execute(ExecRequest(Snippet("node", "out a"), session=use), CALLER)
        assert said(await it.step("get x", use)) == (0, b"one\n")


@pytest.mark.parametrize(("wall_s", "grace_s"), [(0.1, 0.2), (4, 1), (100, SETTINGS.interrupt_grace_s)])
@in_virtual_time
async def test_the_grace_after_an_interrupt_is_as_the_time_before_within_bounds(wall_s: float, grace_s: float) -> None:
    async with rig() as it:
        result = await it.step("trap\nsleep 1000", limits=LimitsOverride(wall_s=wall_s))
        assert result.timings.exec_s == pytest.approx(wall_s + grace_s)


@in_virtual_time
async def test_a_secret_that_an_interrupt_cut_off_is_masked() -> None:
    async with rig() as it:
        result = await it.step("out a sec\nsleep 9", secrets=("sec\nret",), limits=ONE_SECOND)
        assert (result.outcome, result.stdout) == (Outcome.TIMED_OUT, b"a ***")
        assert said(await it.step("out a sec", secrets=("sec\nret",))) == (0, b"a sec\n")


# --- machinery that fails ---


@in_virtual_time
async def test_an_interpreter_found_dead_is_replaced_and_its_state_is_said_to_be_lost() -> None:
    async with rig() as it:
        await it.step("set x one")
        for guest in it.tier.alive:
            if isinstance(guest, FakeSandbox) and "x" in guest.kept:
                guest.die()
        result = await it.step("out again")
        assert (said(result), result.state_lost) == ((0, b"again\n"), True)
        assert not (await it.step("get x")).state_lost


@in_virtual_time
async def test_a_process_found_dead_that_had_no_state_loses_none() -> None:
    async with rig(pool=0) as it:
        await it.engine.sessions.create(KEY, CALLER, SessionSpec("python"))
        for guest in it.tier.alive:
            assert isinstance(guest, FakeSandbox)
            guest.die()
        result = await it.step("out again")
        assert (said(result), result.state_lost) == ((0, b"again\n"), False)


@pytest.mark.parametrize("use", [USE, FRESH], ids=["lasting", "fresh"])
@in_virtual_time
async def test_two_dead_processes_in_a_row_end_the_session(use: SessionUse) -> None:
    tried = []

    async def refuse(self: FakeGuest, step: object, limits: object, sink: OutputSink) -> None:
        tried.append(self)
        raise GuestLost("dead", step=BEFORE_START)

    async with rig() as it:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FakeGuest, "exec", refuse)
            with pytest.raises(GuestLost):
                await it.step("out a", use)
        assert len(tried) == 2
        with pytest.raises(SessionNotFound):
            it.engine.sessions.state(KEY)


@in_virtual_time
async def test_a_sandbox_that_is_lost_ends_the_session_and_the_next_execution_makes_another() -> None:
    async with rig() as it:
        await it.step("set x one\nwrite f kept")
        with pytest.raises(GuestLost):
            await it.step("lost")
        assert (await it.step("cat f")).exit_code == 1
        assert len(it.engine.sessions) == 1


@in_virtual_time
async def test_a_sandbox_that_says_nothing_after_a_kill_ends_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig() as it:
        await it.step("set x one")
        monkeypatch.setattr(FakeSandbox, "exec", hang)
        began = virtual_loop().time()
        with pytest.raises(GuestLost):
            await it.step("out a", limits=ONE_SECOND)
        took_s = 1 + GRACE_S + SETTINGS.kill_grace_s
        assert virtual_loop().time() - began == pytest.approx(took_s)
        assert len(it.engine.sessions) == 0


@in_virtual_time
async def test_a_template_that_died_is_made_anew_for_a_process_that_joins() -> None:
    async with rig() as it:
        await it.step("set x one")
        (await it.tier.template("python")).die()
        assert (await it.step("get x", FRESH)).exit_code == 1
        it.tier.failing_forks = 1
        assert said(await it.step("out b", FRESH)) == (0, b"b\n")
        it.tier.failing_forks, it.tier.fork_errno = 2, errno.ECHILD
        with pytest.raises(GuestLost, match="join"):
            await it.step("out c", FRESH)
        assert len(it.engine.sessions) == 0


@in_virtual_time
async def test_what_keeps_a_process_from_joining_for_a_while_costs_no_session() -> None:
    async with rig() as it:
        await it.step("set x one")
        it.tier.failing_forks, it.tier.fork_errno = 1000, errno.EMFILE
        with pytest.raises(ForkFailed) as raised:
            await it.step("out c", FRESH)
        assert raised.value.retry_after_s is not None
        it.tier.failing_forks = 0
        assert said(await it.step("get x")) == (0, b"one\n")


@in_virtual_time
async def test_a_kill_that_fails_ends_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(self: FakeSandbox) -> None:
        raise GuestLost("they did not die")

    async with rig() as it:
        await it.step("limit cpu_limit")
        monkeypatch.setattr(FakeSandbox, "cleared", fail)
        with pytest.raises(GuestLost):
            await it.step("out a")
        assert len(it.engine.sessions) == 0


@in_virtual_time
async def test_files_that_cannot_be_written_cost_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: FakeFiles, files: object) -> None:
        if files:
            raise FileNotInSandbox("a: No space left on device")

    async with rig() as it:
        await it.step("set x one")
        with monkeypatch.context() as patch:
            patch.setattr(FakeFiles, "put", full)
            for use in (USE, FRESH):
                with pytest.raises(FileNotInSandbox):
                    await it.step("out a", use, files=(InputFile("a", b"a"),))
        result = await it.step("get x")
        assert (said(result), result.state_lost) == ((0, b"one\n"), False)
        await settle()
        assert len(it.tier.alive) - it.engine.statistics().pool[0].parked == 1


# --- turns, and clients that go away ---


@in_virtual_time
async def test_executions_of_one_session_run_one_after_another_and_other_sessions_beside_them() -> None:
    async with rig() as it:
        began = virtual_loop().time()
        tasks = [begin(it, "sleep 2") for _ in range(3)]
        other = begin(it, "sleep 2", replace(USE, name="other"))
        await settle()
        assert it.engine.sessions.state(KEY).busy
        await other
        assert virtual_loop().time() - began == pytest.approx(2, abs=0.1)
        await asyncio.gather(*tasks)
        assert virtual_loop().time() - began == pytest.approx(6, abs=0.1)


@in_virtual_time
async def test_a_client_that_goes_away_interrupts_and_the_next_finds_the_state() -> None:
    async with rig() as it:
        await it.step("set x one")
        going = begin(it, "set x two\nsleep 100")
        await settle()
        going.cancel()
        with pytest.raises(asyncio.CancelledError):
            await going
        assert said(await it.step("get x")) == (0, b"two\n")


@in_virtual_time
async def test_a_client_that_goes_away_is_outlived_by_what_heeds_no_interrupt_for_the_grace_only() -> None:
    async with rig() as it:
        going = begin(it, "trap\nsleep 100")
        await settle()
        began = virtual_loop().time()
        going.cancel()
        assert said(await it.step("out next")) == (0, b"next\n")
        assert virtual_loop().time() - began == pytest.approx(SETTINGS.interrupt_grace_s + FORK_S)


@in_virtual_time
async def test_a_fresh_program_whose_client_goes_away_is_killed_and_all_state_stays() -> None:
    async with rig() as it:
        await it.step("set x one")
        going = begin(it, "write f made\nsleep 100", FRESH)
        await asyncio.sleep(1)
        began = virtual_loop().time()
        going.cancel()
        with pytest.raises(asyncio.CancelledError):
            await going
        assert said(await it.step("get x\ncat f")) == (0, b"one\nmade")
        assert virtual_loop().time() - began < SETTINGS.interrupt_grace_s


@in_virtual_time
async def test_a_client_that_goes_away_before_its_turn_has_nothing_run() -> None:
    async with rig(ONE_AT_A_TIME) as it:
        await it.step("set x one")
        running = begin(it, "sleep 5")
        waiting = begin(it, "write f made")
        other = begin(it, "write f made", replace(USE, name="other"))  # in the queue of the server
        await settle()
        waiting.cancel()
        other.cancel()
        await running
        assert said(await it.step("get x")) == (0, b"one\n")
        for use in (USE, replace(USE, name="other")):
            assert (await it.step("cat f", use)).exit_code == 1


@in_virtual_time
async def test_a_client_that_goes_away_while_its_process_is_forked_has_nothing_run() -> None:
    async with rig() as it:
        await it.step("set x one")
        it.tier.fork_s = 2
        going = begin(it, "write f made", FRESH)
        await pass_time(1)
        assert it.counts[0] == 1
        going.cancel()
        await pass_time(2)
        assert it.counts[0] == 0
        assert said(await it.step("get x\ncat f")) == (1, b"one\n")
        assert len(it.tier.alive) - it.engine.statistics().pool[0].parked == 1


@in_virtual_time
async def test_every_execution_in_a_session_is_observed_once() -> None:
    async with rig() as it:
        result = await it.step("out a")
        with pytest.raises(SessionNotFound):
            await it.step("out b", replace(ONLY_USE, name="missing"))
        with pytest.raises(GuestLost):
            await it.step("lost")
        going = begin(it, "sleep 100")
        await settle()
        going.cancel()
        await pass_time(1)
        assert [type(each.outcome) for each in it.observed] == [
            ExecResult,
            SessionNotFound,
            GuestLost,
            asyncio.CancelledError,
        ]
        assert it.observed[0].outcome is result
        assert all(each.plan is not None for each in it.observed)


@in_virtual_time
async def test_a_follower_gets_what_comes_of_an_execution_in_a_session() -> None:
    async with rig() as it:
        follower = Follower()
        follower.refuses = True
        handles = []
        task = asyncio.ensure_future(
            it.engine.execute(script("out a\nout b", session=USE), CALLER, follower, handles.append)
        )
        await settle()
        assert follower.chunks == [(Stream.STDOUT, b"a\n")]
        follower.refuses = False
        handles[0].resume()
        assert (await task).stdout == b""
        assert follower.size == 4


@in_virtual_time
async def test_so_many_executions_wait_for_their_turn_at_most() -> None:
    settings = replace(SETTINGS, sessions=SessionSettings(most_waiting=2))
    async with rig(settings) as it:
        await it.step("set x one")
        tasks = [begin(it, "sleep 1\nget x") for _ in range(4)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        (refused,) = (each for each in results if isinstance(each, BaseException))
        assert isinstance(refused, Overloaded)
        assert refused.retry_after_s
        assert said(await it.step("get x")) == (0, b"one\n")


@in_virtual_time
async def test_a_queue_that_is_full_refuses_an_execution_in_a_session_and_keeps_the_session() -> None:
    settings = replace(SETTINGS, admission=AdmissionSettings(max_running=1, max_queued=0))
    async with rig(settings) as it:
        await it.step("set x one")
        running = asyncio.ensure_future(it.run("sleep 1"))
        await settle()
        with pytest.raises(Overloaded):
            await it.step("out a")
        await running
        assert said(await it.step("get x")) == (0, b"one\n")


# --- what is fed before it begins ---


async def fed(it: Rig, feeding: Awaitable[None], task: asyncio.Task[ExecResult]) -> bytes:
    fed_in = asyncio.ensure_future(feeding)
    result = await task
    await fed_in
    return result.stdout


@in_virtual_time
async def test_what_is_fed_before_the_program_begins_waits_for_it() -> None:
    async with rig(ONE_AT_A_TIME) as it:
        running = asyncio.ensure_future(it.run("sleep 5"))
        await settle()
        handles = []
        task = asyncio.ensure_future(it.engine.execute(script("read", keep_stdin=True), CALLER, None, handles.append))
        await settle()
        assert await fed(it, handles[0].feed(b"early\n"), task) == b"early\n"
        await handles[0].feed(b"nobody is there")
        await running


@in_virtual_time
async def test_what_is_fed_to_a_sandbox_that_was_dead_is_fed_to_its_successor() -> None:
    async with rig() as it:
        for sandbox in it.tier.alive:
            assert isinstance(sandbox, FakeSandbox)
            sandbox.die()
        it.tier.fork_s = 1
        it.engine.resize("python", 1)
        handles = []
        task = asyncio.ensure_future(it.engine.execute(script("read", keep_stdin=True), CALLER, None, handles.append))
        assert not handles
        await asyncio.sleep(0)
        assert await fed(it, handles[0].feed(b"early\n"), task) == b"early\n"


@in_virtual_time
async def test_what_is_fed_to_an_execution_that_never_begins_keeps_nobody_waiting() -> None:
    async with rig(ONE_AT_A_TIME) as it:
        running = asyncio.ensure_future(it.run("sleep 5"))
        await settle()
        handles = []
        task = asyncio.ensure_future(it.engine.execute(script("read", keep_stdin=True), CALLER, None, handles.append))
        await settle()
        feeding = asyncio.ensure_future(handles[0].feed(b"early\n"))
        await it.engine.drain(0)
        for waiting in (task, running):
            with pytest.raises(Draining):
                await waiting
        await feeding
