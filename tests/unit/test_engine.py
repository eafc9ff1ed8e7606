"""The engine: one request in, one true result out, and nothing left."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from sandfork.engine.admission import AdmissionSettings
from sandfork.engine.execution import Execution
from sandfork.errors import (
    GuestLost,
)
from sandfork.model import Command, ExecRequest, Limits, Outcome, Stream, Usage
from sandfork.tiers.base import Collected, OutputSink, StepEnd
from sandfork.tiers.fake import FakeSandbox
from tests.support.clock import in_virtual_time, settle
from tests.support.engine import CALLER, FORK_S, SETTINGS, Follower, limited, rig, script

ONE_AT_A_TIME = replace(SETTINGS, admission=AdmissionSettings(max_running=1))


@in_virtual_time
async def test_a_result_says_what_the_program_did() -> None:
    async with rig() as it:
        result = await it.run("out hello\nerr oops\nexit 3")
        assert (result.stdout, result.stderr) == (b"hello\n", b"oops\n")
        assert (result.outcome, result.exit_code, result.signal, result.status) == (Outcome.EXITED, 3, None, 3)
        assert (result.truncated, result.isolation, result.limits) == (False, "process", Limits())
        died = await it.run("signal 11")
        assert (died.outcome, died.exit_code, died.signal, died.status) == (Outcome.SIGNALLED, None, 11, 139)
        assert died.exec_id != result.exec_id


@in_virtual_time
async def test_a_limit_the_tier_enforces_is_the_outcome() -> None:
    async with rig() as it:
        for outcome in (Outcome.OUT_OF_MEMORY, Outcome.CPU_LIMIT, Outcome.PIDS_LIMIT, Outcome.DISK_LIMIT):
            assert (await it.run(f"limit {outcome}")).outcome == outcome


@in_virtual_time
async def test_commands_run_too() -> None:
    async with rig() as it:
        result = await it.engine.execute(ExecRequest(Command(("sh", "out hello"))), CALLER)
        assert result.stdout == b"hello\n"


@in_virtual_time
async def test_the_timings_of_a_warm_run_are_the_spans_that_passed() -> None:
    async with rig() as it:
        timings = (await it.run("sleep 2.5")).timings
        assert timings.queue_s == 0
        assert timings.fork_s == 0
        assert timings.exec_s == pytest.approx(2.5)
        assert timings.total_s == pytest.approx(2.5)


@in_virtual_time
async def test_a_fork_on_demand_counts_as_fork_time_and_waiting_as_queue_time() -> None:
    async with rig(ONE_AT_A_TIME, pool=0) as it:
        first = asyncio.ensure_future(it.run("sleep 3"))
        await settle()
        second = await it.run("sleep 1")
        assert second.timings.queue_s == pytest.approx(3 + FORK_S)
        assert second.timings.fork_s == pytest.approx(FORK_S)
        assert second.timings.exec_s == pytest.approx(1)
        assert second.timings.total_s == pytest.approx(4 + 2 * FORK_S)
        await first


@in_virtual_time
async def test_at_the_wall_limit_the_program_is_killed_and_its_output_kept() -> None:
    async with rig() as it:
        result = await it.run("out begun\nsleep 100", wall_s=1.5)
        assert (result.outcome, result.exit_code, result.signal) == (Outcome.TIMED_OUT, None, 9)
        assert result.stdout == b"begun\n"
        assert result.timings.exec_s == pytest.approx(1.5)


@in_virtual_time
async def test_waiting_for_a_turn_and_for_a_fork_does_not_count_against_the_wall_limit() -> None:
    async with rig(ONE_AT_A_TIME, pool=0, fork_s=5) as it:
        first = asyncio.ensure_future(it.run("sleep 0.9", wall_s=1))
        second = asyncio.ensure_future(it.run("sleep 0.9", wall_s=1))
        assert {(await first).outcome, (await second).outcome} == {Outcome.EXITED}


@pytest.mark.parametrize("size", [1, 99, 100])
@in_virtual_time
async def test_output_up_to_the_cap_is_whole(size: int) -> None:
    async with rig() as it:
        result = await it.run(f"flood {size}", output_bytes=100)
        assert (len(result.stdout), result.truncated, result.outcome) == (size, False, Outcome.EXITED)


@pytest.mark.parametrize("size", [101, 65536, 10_000_000])
@in_virtual_time
async def test_output_over_the_cap_is_cut_at_exactly_the_cap_and_the_program_stopped(size: int) -> None:
    async with rig() as it:
        result = await it.run(f"flood {size}\nsleep 100", output_bytes=100)
        assert (len(result.stdout), result.truncated, result.outcome) == (100, True, Outcome.OUTPUT_LIMIT)
        assert result.timings.exec_s == 0


@in_virtual_time
async def test_a_program_is_live_where_somebody_follows_its_output() -> None:
    async with rig() as it:
        handles: list[Execution] = []
        await it.engine.execute(script("out a"), CALLER, None, handles.append)
        await it.engine.execute(script("out a"), CALLER, Follower(), handles.append)
        assert [handle.plan.step.live for handle in handles] == [False, True]


@in_virtual_time
async def test_the_cap_counts_per_stream() -> None:
    async with rig() as it:
        result = await it.run("out 123456789\nerr 123456789", output_bytes=10)
        assert (result.truncated, len(result.stdout), len(result.stderr)) == (False, 10, 10)
        result = await it.run("err 12345678901\nout kept", output_bytes=10)
        assert (result.truncated, result.stderr, result.stdout) == (True, b"1234567890", b"")


@in_virtual_time
async def test_output_over_the_cap_is_the_outcome_even_when_the_program_ended_before_the_kill(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def exec_fast(self: FakeSandbox, step: object, limits: object, sink: OutputSink) -> StepEnd:
        sink.output(Stream.STDOUT, b"x" * 50)
        sink.output(Stream.STDOUT, b"y" * 100)
        sink.output(Stream.STDERR, b"z" * 5)
        return StepEnd(Outcome.EXITED, 0, None, 0, 0, Usage())

    async with rig() as it:
        monkeypatch.setattr(FakeSandbox, "exec", exec_fast)
        result = await it.run("", output_bytes=60)
        assert (result.outcome, result.exit_code, result.truncated) == (Outcome.OUTPUT_LIMIT, 0, True)
        assert (result.stdout, result.stderr) == (b"x" * 50 + b"y" * 10, b"z" * 5)


@in_virtual_time
async def test_a_follower_gets_the_output_as_it_comes_and_the_result_has_none() -> None:
    async with rig() as it:
        follower = Follower()
        task = asyncio.ensure_future(it.engine.execute(script("out a\nsleep 5\nerr b"), CALLER, follower))
        await settle()
        assert follower.chunks == [(Stream.STDOUT, b"a\n")]
        result = await task
        assert follower.chunks == [(Stream.STDOUT, b"a\n"), (Stream.STDERR, b"b\n")]
        assert (result.stdout, result.stderr, result.exit_code) == (b"", b"", 0)
        assert result.written_bytes == (2, 2)


@in_virtual_time
async def test_a_follower_gets_at_most_the_cap() -> None:
    async with rig() as it:
        follower = Follower()
        request = limited("flood 1000000", output_bytes=70_000)
        result = await it.engine.execute(request, CALLER, follower)
        assert (follower.size, result.truncated, result.outcome) == (70_000, True, Outcome.OUTPUT_LIMIT)
        assert result.written_bytes == (70_000, 0)


@in_virtual_time
async def test_a_slow_follower_holds_the_program_back_until_it_resumes() -> None:
    async with rig() as it:
        follower, handles = Follower(), list[Execution]()
        follower.refuses = True
        request = script(f"flood {3 * 65536}")
        task = asyncio.ensure_future(it.engine.execute(request, CALLER, follower, handles.append))
        for count in (1, 2, 3):
            await settle()
            assert len(follower.chunks) == count
            handles[0].resume()
        result = await task
        assert handles[0].exec_id == result.exec_id
        assert result.outcome == Outcome.EXITED
        handles[0].resume()


@in_virtual_time
async def test_a_follower_that_never_resumes_is_cut_off_at_the_wall_limit() -> None:
    async with rig() as it:
        follower = Follower()
        follower.refuses = True
        result = await it.engine.execute(limited("flood 200000", wall_s=2), CALLER, follower)
        assert result.outcome == Outcome.TIMED_OUT


@in_virtual_time
async def test_files_are_collected_after_the_end() -> None:
    async with rig() as it:
        request = script("write a.txt one\nwrite b.bin two\nlink c.txt /etc/passwd", collect=("*.txt", "nothing"))
        result = await it.engine.execute(request, CALLER)
        assert [(file.path, file.content) for file in result.files] == [("a.txt", b"one")]
        assert result.files_skipped == ("c.txt",)


@pytest.mark.parametrize("how", ["hangs", "fails"])
@in_virtual_time
async def test_files_that_cannot_be_collected_are_named_and_the_result_stands(how: str) -> None:
    async def collect(self: FakeSandbox, patterns: object, max_bytes: int) -> Collected:
        if how == "hangs":
            await asyncio.get_running_loop().create_future()
        raise GuestLost("gone")

    async with rig() as it:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FakeSandbox, "collect", collect)
            result = await it.engine.execute(script("out hello", collect=("a", "b")), CALLER)
        assert (result.stdout, result.files, result.files_skipped) == (b"hello\n", (), ("a", "b"))
