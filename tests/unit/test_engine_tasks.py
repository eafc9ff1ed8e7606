"""Executions that nobody waits for: they go on, what came of them is kept for a while, and there are not too many."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sandfork.engine.engine import Engine
from sandfork.engine.tasks import TaskSettings
from sandfork.errors import Draining, GuestLost, Overloaded, SessionNotFound, UnknownLanguage
from sandfork.model import Caller, ExecRequest, ExecResult, LimitsOverride, Snippet, TaskState
from tests.support.clock import in_virtual_time, pass_time, settle, virtual_loop
from tests.support.engine import CALLER, SETTINGS, USE, Rig, rig, script

FEW = replace(SETTINGS, tasks=TaskSettings(most_running=2, most_kept=3, keep_s=10))


def start(it: Rig, text: str, caller: Caller = CALLER) -> TaskState:
    return it.engine.tasks.start(script(text, limits=LimitsOverride(wall_s=200)), caller)


def stdout_of(it: Rig, task: TaskState) -> bytes:
    ended = it.engine.tasks.read(task.task_id, CALLER).ended
    assert isinstance(ended, ExecResult)
    return ended.stdout


@in_virtual_time
async def test_a_task_runs_by_itself_and_its_result_is_there_afterwards() -> None:
    async with rig() as it:
        task = start(it, "sleep 2\nout a")
        assert (task.ended, task.created_s) == (None, virtual_loop().time())
        await pass_time(1)
        assert it.engine.tasks.read(task.task_id, CALLER) == task
        await pass_time(2)
        assert stdout_of(it, task) == b"a\n"
        assert it.engine.tasks.read(task.task_id, CALLER).created_s == task.created_s


@in_virtual_time
async def test_a_task_can_run_in_a_session() -> None:
    async with rig() as it:
        await it.step("set x one")
        task = it.engine.tasks.start(script("get x", session=USE), CALLER)
        await settle()
        assert stdout_of(it, task) == b"one\n"


@in_virtual_time
async def test_what_fails_is_kept_as_its_error() -> None:
    async with rig() as it:
        lost = start(it, "lost")
        await settle()
        assert isinstance(it.engine.tasks.read(lost.task_id, CALLER).ended, GuestLost)


@in_virtual_time
async def test_what_can_never_run_is_refused_at_once_and_what_can_is_begun() -> None:
    async with rig() as it:
        with pytest.raises(UnknownLanguage):
            it.engine.tasks.start(ExecRequest(Snippet("klingon", "")), CALLER)
        assert it.observed == []
        task = start(it, "out a")
        await settle()
        assert stdout_of(it, task) == b"a\n"
        assert len(it.observed) == 1


@in_virtual_time
async def test_a_mistake_of_ours_ends_a_task_too(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(*what: object) -> ExecResult:
        raise RuntimeError("a mistake")

    async with rig() as it:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Engine, "_perform", fail)
            task = start(it, "out a")
            await settle()
        assert isinstance(it.engine.tasks.read(task.task_id, CALLER).ended, RuntimeError)
        assert "a mistake" in caplog.text


@in_virtual_time
async def test_a_task_is_known_to_its_owner_only() -> None:
    async with rig() as it:
        task = start(it, "out a")
        for task_id, caller in ((task.task_id, Caller("k2")), ("unknown", CALLER)):
            with pytest.raises(SessionNotFound):
                it.engine.tasks.read(task_id, caller)
        assert it.engine.tasks.read(task.task_id, CALLER) == task


@in_virtual_time
async def test_there_are_so_many_at_one_time_at_most() -> None:
    async with rig(FEW) as it:
        for _ in range(2):
            start(it, "sleep 5")
        with pytest.raises(Overloaded) as caught:
            start(it, "out a")
        assert caught.value.retry_after_s
        await pass_time(6)
        start(it, "out a")


@in_virtual_time
async def test_a_result_is_kept_for_its_time_from_its_end() -> None:
    async with rig(FEW) as it:
        task = start(it, "sleep 30\nout a")
        await pass_time(39)
        assert stdout_of(it, task) == b"a\n"
        await pass_time(2)
        with pytest.raises(SessionNotFound):
            it.engine.tasks.read(task.task_id, CALLER)


@in_virtual_time
async def test_beyond_so_many_results_the_oldest_are_forgotten_and_what_runs_never() -> None:
    async with rig(FEW) as it:
        running = start(it, "sleep 8\nout slow")
        tasks = []
        for number in range(4):
            tasks.append(start(it, f"out {number}"))
            await pass_time(1)
        with pytest.raises(SessionNotFound):
            it.engine.tasks.read(tasks[0].task_id, CALLER)
        assert stdout_of(it, tasks[3]) == b"3\n"
        assert it.engine.tasks.read(running.task_id, CALLER).ended is None
        await pass_time(6)
        assert stdout_of(it, running) == b"slow\n"


@in_virtual_time
async def test_beyond_so_many_bytes_of_results_the_oldest_are_forgotten() -> None:
    small = replace(SETTINGS, tasks=TaskSettings(keep_bytes=100))
    async with rig(small) as it:
        first, second = start(it, "flood 60"), start(it, "sleep 1\nflood 60")
        await settle()
        assert len(stdout_of(it, first)) == 60
        await pass_time(2)
        assert len(stdout_of(it, second)) == 60
        with pytest.raises(SessionNotFound):
            it.engine.tasks.read(first.task_id, CALLER)


@in_virtual_time
async def test_draining_waits_for_tasks_and_closing_leaves_none() -> None:
    async with rig() as it:
        short, long = start(it, "sleep 2\nout a"), start(it, "sleep 100")
        await settle()
        await it.engine.drain(3)
        await settle()
        assert stdout_of(it, short) == b"a\n"
        assert isinstance(it.engine.tasks.read(long.task_id, CALLER).ended, Draining)
        start(it, "out a")
        await it.engine.close()
