"""The engine and its sandboxes: destroyed after use, replaced when found dead, given up when they hang."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from sandfork.engine.admission import AdmissionSettings
from sandfork.errors import (
    ForkFailed,
    GuestLost,
)
from sandfork.model import Outcome, Stream, Usage
from sandfork.tiers.base import OutputSink, StepEnd
from sandfork.tiers.fake import FakeSandbox
from tests.support.clock import in_virtual_time, pass_time, settle, virtual_loop
from tests.support.engine import SETTINGS, hang, rig


@in_virtual_time
async def test_a_client_that_is_gone_stops_its_program_and_frees_its_slot() -> None:
    async with rig() as it:
        task = asyncio.ensure_future(it.run("sleep 1000"))
        await settle()
        assert it.counts == (1, 0, 0)
        alive = set(it.tier.alive)
        task.cancel()
        await settle()
        assert task.cancelled()
        assert it.counts[0] == 0
        assert len(alive - it.tier.alive) == 1
        assert isinstance(it.observed[-1].outcome, asyncio.CancelledError)


@in_virtual_time
async def test_a_sandbox_is_destroyed_a_moment_after_its_answer_and_not_before() -> None:
    async with rig(pool=1) as it:
        await it.run("out hello")
        await settle()
        assert it.counts == (0, 0, 1)
        await pass_time(SETTINGS.dispose_delay_s * 1.5)
        assert it.counts == (0, 0, 0)


@in_virtual_time
async def test_sandboxes_that_die_slowly_hold_new_ones_back() -> None:
    settings = replace(SETTINGS, admission=AdmissionSettings(max_dying=2))
    async with rig(settings, pool=4, close_s=7) as it:
        await asyncio.gather(it.run("out a"), it.run("out b"))
        result = await it.run("out c")
        assert result.timings.queue_s == pytest.approx(7 + SETTINGS.dispose_delay_s, abs=0.001)
        await pass_time(60)
        assert it.counts == (0, 0, 0)


@in_virtual_time
async def test_a_sandbox_that_cannot_be_destroyed_stays_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(self: FakeSandbox) -> None:
        raise OSError("the kernel says no")

    async with rig(pool=1) as it:
        with monkeypatch.context() as patch:
            patch.setattr(FakeSandbox, "close", fail)
            await it.run("out hello")
            await pass_time(1)
        assert it.counts == (0, 0, 1)
        assert it.engine.statistics().lost == 1
        await it.tier.close()


@in_virtual_time
async def test_destroying_a_sandbox_has_a_deadline() -> None:
    async with rig(pool=1, close_s=10_000) as it:
        await it.run("out hello")
        await pass_time(SETTINGS.close_s + 1)
        assert it.engine.statistics().lost == 1
        it.tier.alive.clear()


@in_virtual_time
async def test_a_parked_sandbox_found_dead_is_replaced_without_a_word() -> None:
    async with rig(pool=2) as it:
        for sandbox in it.tier.alive:
            sandbox.die()
            break
        results = [await it.run("out hello") for _ in range(2)]
        assert [result.stdout for result in results] == [b"hello\n"] * 2
        assert it.tier.forked >= 3


@in_virtual_time
async def test_two_dead_sandboxes_in_a_row_are_the_tiers_error() -> None:
    async with rig(pool=2) as it:
        for sandbox in it.tier.alive:
            sandbox.die()
        with pytest.raises(GuestLost):
            await it.run("out hello")
        assert it.counts[0] == 0


@in_virtual_time
async def test_a_program_that_may_have_started_is_never_run_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = 0

    async def lose(self: FakeSandbox, step: object, limits: object, sink: OutputSink) -> StepEnd:
        nonlocal runs
        runs += 1
        sink.output(Stream.STDOUT, b"something")
        raise ForkFailed("says it never began", step="exec")

    async with rig() as it:
        with pytest.raises(GuestLost):
            await it.run("lost")
        assert it.engine.statistics().pool[0].hits == 1
        monkeypatch.setattr(FakeSandbox, "exec", lose)
        with pytest.raises(ForkFailed):
            await it.run("out a")
        assert runs == 1


@pytest.mark.parametrize(
    ("ready_s", "done_s", "spans"),
    [
        (1, 2, (1, 1)),
        (-5, 2, (0, 2)),
        (1, 99, (1, 2)),
        (2, 1, (2, 0)),
        (99, 99, (3, 0)),
        (None, None, (0, 3)),
    ],
)
@in_virtual_time
async def test_stamps_of_a_sandbox_count_only_within_what_was_seen_from_outside(
    ready_s: float | None, done_s: float | None, spans: tuple[float, float]
) -> None:
    async with rig() as it:
        began_ns = virtual_loop().time_ns()

        async def claim(self: FakeSandbox, step: object, limits: object, sink: OutputSink) -> StepEnd:
            virtual_loop().advance(3)
            ready_ns, done_ns = (0 if s is None else round(began_ns + s * 1e9) for s in (ready_s, done_s))
            return StepEnd(Outcome.EXITED, 0, None, ready_ns, done_ns, Usage())

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FakeSandbox, "exec", claim)
            timings = (await it.run("")).timings
        assert (timings.fork_s, timings.exec_s) == pytest.approx(spans)


@in_virtual_time
async def test_a_sandbox_that_does_not_answer_a_kill_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig() as it:
        monkeypatch.setattr(FakeSandbox, "exec", hang)
        began = virtual_loop().time()
        with pytest.raises(GuestLost, match="no word within 5 s"):
            await it.run("", wall_s=2)
        assert virtual_loop().time() - began == pytest.approx(2 + SETTINGS.kill_grace_s)
        assert it.counts[0] == 0


@in_virtual_time
async def test_a_client_gone_at_the_moment_its_sandbox_is_given_up_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig() as it:
        monkeypatch.setattr(FakeSandbox, "exec", hang)
        task = asyncio.ensure_future(it.run("", wall_s=2))
        await settle()
        asyncio.get_running_loop().call_later(2 + SETTINGS.kill_grace_s, task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task
