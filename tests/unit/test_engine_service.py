"""The engine as a service: callers, batches, observers, draining and closing."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from sandfork.dialects.refusals import status_of
from sandfork.engine.admission import AdmissionSettings
from sandfork.engine.execution import Execution
from sandfork.errors import (
    DeadlinePassed,
    Draining,
    GuestLost,
    InvalidRequest,
    LanguageGone,
    Overloaded,
    TemplateFailed,
    TemplateGone,
    UnknownLanguage,
)
from sandfork.model import Caller, Command, ExecRequest, ExecResult, Snippet
from sandfork.tiers.fake import FakeSandbox
from tests.support.clock import in_virtual_time, pass_time, settle, virtual_loop
from tests.support.engine import CALLER, CATALOGUE, SETTINGS, Rig, hang, limited, rig, script

BASH = ExecRequest(Snippet("bash", "echo"))
ONE_AT_A_TIME = replace(SETTINGS, admission=AdmissionSettings(max_running=1))


@in_virtual_time
async def test_a_module_whose_template_cannot_be_made_is_left_to_the_default_template() -> None:
    async with rig() as it:
        it.tier.broken["python-numpy"] = "no module named numpy"
        with pytest.raises(TemplateFailed, match="no module named numpy"):
            await it.run("import numpy")
        assert (await it.run("import numpy")).exit_code == 127
        assert it.observed[-1].plan is not None
        assert it.observed[-1].plan.template_key == "python"


@in_virtual_time
async def test_every_execution_is_observed_once_with_what_came_of_it() -> None:
    async with rig(replace(SETTINGS, admission=AdmissionSettings(max_running=1, max_queued=0))) as it:
        result = await it.run("out hello")
        with pytest.raises(UnknownLanguage):
            await it.engine.execute(ExecRequest(Snippet("klingon", "")), CALLER)
        running = asyncio.ensure_future(it.run("sleep 1"))
        await settle()
        with pytest.raises(Overloaded):
            await it.run("out refused")
        await running
        told = [(type(o.outcome), o.plan is not None) for o in it.observed]
        assert told == [(ExecResult, True), (UnknownLanguage, False), (Overloaded, True), (ExecResult, True)]
        assert it.observed[0].outcome is result
        assert {o.caller for o in it.observed} == {CALLER}


@in_virtual_time
async def test_one_caller_cannot_keep_another_waiting_behind_its_whole_line() -> None:
    async with rig(ONE_AT_A_TIME) as it:
        order: list[str] = []

        async def run(key: str) -> None:
            await it.engine.execute(script("sleep 1"), Caller(key))
            order.append(key)

        tasks = [asyncio.ensure_future(run("greedy")) for _ in range(10)]
        await settle()
        tasks.append(asyncio.ensure_future(run("modest")))
        await asyncio.gather(*tasks)
        assert order.index("modest") <= 2


@in_virtual_time
async def test_callers_without_a_key_are_told_apart_by_address() -> None:
    async with rig(ONE_AT_A_TIME) as it:
        order: list[str] = []

        async def run(address: str) -> None:
            await it.engine.execute(script("sleep 1"), Caller("", address))
            order.append(address)

        tasks = [asyncio.ensure_future(run("192.0.2.1")) for _ in range(10)]
        await settle()
        await run("192.0.2.2")
        assert order.index("192.0.2.2") <= 2
        await asyncio.gather(*tasks)


@in_virtual_time
async def test_the_items_of_a_batch_run_side_by_side_and_fail_one_by_one() -> None:
    async with rig() as it:
        requests = [script("sleep 2\nout a"), ExecRequest(Snippet("klingon", "")), script("lost"), script("out d")]
        began = virtual_loop().time()
        first, second, third, fourth = await it.engine.batch(requests, CALLER)
        assert virtual_loop().time() - began == pytest.approx(2)
        assert isinstance(first, ExecResult)
        assert isinstance(fourth, ExecResult)
        assert (first.stdout, fourth.stdout) == (b"a\n", b"d\n")
        assert isinstance(second, UnknownLanguage)
        assert isinstance(third, GuestLost)


@in_virtual_time
async def test_each_item_of_a_batch_needs_a_slot_of_its_own() -> None:
    settings = replace(SETTINGS, admission=AdmissionSettings(max_running=2, max_queued=1, max_wait_s=5))
    async with rig(settings) as it:
        answers = await it.engine.batch([limited("sleep 100", wall_s=20)] * 4, CALLER)
        kinds = sorted(type(answer).__name__ for answer in answers)
        assert kinds == ["DeadlinePassed", "ExecResult", "ExecResult", "Overloaded"]
        assert any(isinstance(answer, DeadlinePassed) for answer in answers)


@in_virtual_time
async def test_cancelling_a_batch_stops_all_its_programs() -> None:
    async with rig() as it:
        task = asyncio.ensure_future(it.engine.batch([script("sleep 100")] * 3, CALLER))
        await pass_time(1)
        assert it.counts[0] == 3
        task.cancel()
        await settle()
        assert task.cancelled()
        assert it.counts[0] == 0


@in_virtual_time
async def test_draining_lets_programs_finish_and_takes_nothing_new() -> None:
    async with rig(ONE_AT_A_TIME) as it:
        running = asyncio.ensure_future(it.run("sleep 2\nout a"))
        waiting = asyncio.ensure_future(it.run("sleep 2\nout b"))
        await settle()
        draining = asyncio.ensure_future(it.engine.drain(10))
        await settle()
        with pytest.raises(Draining):
            await it.run("out c")
        await draining
        assert ((await running).stdout, (await waiting).stdout) == (b"a\n", b"b\n")


@in_virtual_time
async def test_what_is_not_over_when_draining_ends_is_stopped_with_draining_and_not_with_an_outcome() -> None:
    async with rig(ONE_AT_A_TIME) as it:
        running = asyncio.ensure_future(it.run("sleep 100", wall_s=200))
        waiting = asyncio.ensure_future(it.run("sleep 100", wall_s=200))
        await settle()
        began = virtual_loop().time()
        await it.engine.drain(3)
        for task in (running, waiting):
            with pytest.raises(Draining):
                await task
        assert virtual_loop().time() - began == pytest.approx(3)


@in_virtual_time
async def test_closing_stops_a_sandbox_that_does_not_answer_and_a_lease_that_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with rig(pool=1) as it:
        monkeypatch.setattr(FakeSandbox, "exec", hang)
        it.tier.fork_s = 1000
        tasks = [asyncio.ensure_future(it.run("", wall_s=200)) for _ in range(2)]
        await settle()
        assert it.counts[0] == 2
        await it.engine.close()
        assert it.counts == (0, 0, 0)
        assert not it.tier.alive
        for task in tasks:
            with pytest.raises(Draining):
                await task


@in_virtual_time
async def test_health_tells_of_every_template_and_resizing_shows_there() -> None:
    def break_node(made: Rig) -> None:
        made.tier.broken["node"] = "no node here"

    async with rig(prepare=break_node) as it:
        with pytest.raises(TemplateFailed):
            await it.engine.execute(ExecRequest(Snippet("node", "")), CALLER)
        it.engine.resize("python", 5)
        await pass_time(1)
        health = {item.key: item for item in it.engine.health()}
        assert (health["python"].ready, health["python"].parked) == (True, 5)
        assert not health["node"].ready
        assert "no node here" in health["node"].reason


@in_virtual_time
async def test_an_interpreter_that_cannot_be_forked_is_executed() -> None:
    def break_perl(made: Rig) -> None:
        made.tier.broken["perl"] = "it has started a thread"

    async with rig(prepare=break_perl) as it:
        for _ in range(2):
            result = await it.engine.execute(ExecRequest(Snippet("perl", "out a")), CALLER)
            assert (result.status, result.stdout) == (0, b"a\n")
        (health,) = [item for item in it.engine.health() if item.key == "perl"]
        assert (health.ready, health.reason) == (False, "template perl: it has started a thread")


@in_virtual_time
async def test_an_invalid_request_takes_no_slot_and_no_sandbox() -> None:
    async with rig() as it:
        with pytest.raises(InvalidRequest):
            await it.run("out a", pids=-1)
        assert it.counts == (0, 0, 0)
        assert it.engine.statistics().pool[0].hits == 0


@in_virtual_time
async def test_a_result_names_the_image_that_its_sandbox_was_on() -> None:
    async with rig(pool=0) as it:
        assert (await it.run("out 1")).image == ""
        it.tier.images["python"] = "py@sha256:1"
        assert (await it.run("out 1")).image == "py@sha256:1", "of the sandbox, whatever was planned"
        assert (await it.step("out 1")).image == "py@sha256:1"


@in_virtual_time
async def test_a_language_whose_image_was_removed_is_told_to_be_gone_also_in_its_sessions() -> None:
    async with rig() as it:
        await it.step("out 1")
        await it.engine.adopt(CATALOGUE.only(lambda each: each.name != "python"), {"command": 0}, ())
        for run in (it.step("out 1"), it.run("out 1")):
            with pytest.raises(LanguageGone, match="python is no longer on this server: the image"):
                await run
        with pytest.raises(UnknownLanguage):
            await it.engine.execute(ExecRequest(Snippet("klingon", "")), CALLER)
        await it.engine.adopt(CATALOGUE, {"python": 1, "command": 0}, ())
        assert (await it.step("out 1")).stdout == b"1\n", "it is back, and the session was there all the time"


async def adopt_bash_on(it: Rig, image: str) -> None:
    """Have bash run on an image, or on the host's files for "", in a template of another key either way."""
    it.tier.images["command@b"] = image
    catalogue = CATALOGUE.on_images({"bash": image} if image else {})
    await it.engine.adopt(catalogue, {"python": 0, "command": 0, **({"command@b": 0} if image else {})}, ())


@in_virtual_time
async def test_what_was_planned_before_its_template_went_runs_as_is_planned_then() -> None:
    async with rig(ONE_AT_A_TIME) as it:
        await adopt_bash_on(it, "b@sha256:1")
        running = asyncio.ensure_future(it.run("sleep 1"))
        started: list[Execution] = []
        waiting = asyncio.ensure_future(it.engine.execute(BASH, CALLER, on_start=started.append))
        await settle()
        await adopt_bash_on(it, "")
        await running
        result = await waiting
        assert [execution.exec_id for execution in started] == [result.exec_id], "it is told of once"
        assert result.image == ""
        plan = it.observed[-1].plan
        assert plan is not None
        assert (plan.exec_id, plan.template_key) == (result.exec_id, "command")


@in_virtual_time
async def test_what_waits_for_a_sandbox_of_a_template_that_goes_runs_as_is_planned_then() -> None:
    async with rig() as it:
        await adopt_bash_on(it, "b@sha256:1")
        waiting = asyncio.ensure_future(it.engine.execute(BASH, CALLER))
        await asyncio.sleep(0)
        assert [each.waiting for each in it.engine.statistics().pool if each.key == "command@b"] == [1]
        await adopt_bash_on(it, "")
        assert (await waiting).image == ""


@in_virtual_time
async def test_what_was_planned_before_its_language_went_is_told_so() -> None:
    async with rig(ONE_AT_A_TIME) as it:
        await adopt_bash_on(it, "b@sha256:1")
        running = asyncio.ensure_future(it.run("sleep 1"))
        waiting = asyncio.ensure_future(it.engine.execute(BASH, CALLER))
        await settle()
        await it.engine.adopt(CATALOGUE.only(lambda each: each.name == "python"), {"python": 0, "command": 0}, ())
        await running
        with pytest.raises(LanguageGone):
            await waiting


@in_virtual_time
async def test_a_session_whose_template_went_before_its_turn_is_to_be_tried_again() -> None:
    async with rig() as it:
        await adopt_bash_on(it, "b@sha256:1")
        opening = asyncio.ensure_future(it.step("", program=BASH.program))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await adopt_bash_on(it, "")
        with pytest.raises(TemplateGone, match="try again") as told:
            await opening
        assert status_of(told.value) == 503
        assert (await it.step("", program=BASH.program)).image == ""


@in_virtual_time
async def test_other_images_are_taken_by_new_programs_and_those_under_way_end_as_they_began() -> None:
    async with rig() as it:
        running = asyncio.ensure_future(it.run("sleep 1"))
        await settle()
        it.tier.images["python"] = "py@sha256:1"
        catalogue = CATALOGUE.on_images({"python": "py@sha256:1"})
        await it.engine.adopt(catalogue, {"python": 1, "command": 0, "command@py": 0}, ())
        assert (await it.run("out 1")).image == "py@sha256:1"
        command = ExecRequest(Command(("true",)), template="command@py")
        it.tier.images["command@py"] = "py@sha256:1"
        assert (await it.engine.execute(command, CALLER)).image == "py@sha256:1"
        await pass_time(1)
        assert (await running).image == ""
        with pytest.raises(TemplateGone, match="no more"):
            await it.engine.execute(ExecRequest(Snippet("node", "")), CALLER)
