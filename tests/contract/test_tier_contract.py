"""What every tier does, whatever it is made of: one suite over all adapters of `ground.TIER_FACTORIES`."""

from __future__ import annotations

import asyncio

import pytest

from sandfork.errors import FileNotInSandbox, GuestLost, TemplateFailed, TierError
from sandfork.model import InputFile, Outcome
from sandfork.tiers.base import BEFORE_START
from tests.contract.ground import LIMITS, TIER_FACTORIES, Ground, Recorder, on_every_tier
from tests.contract.programs import FLOOD_BYTES, PROGRAMS


@on_every_tier
async def test_output_comes_per_stream_and_an_end_with_exit_code_0(ground: Ground) -> None:
    end, sink = await ground.run("hello")
    assert (sink.stdout, sink.stderr) == (b"hello\n", b"oops\n")
    assert (end.outcome, end.exit_code, end.signal) == (Outcome.EXITED, 0, None)


@on_every_tier
async def test_an_exit_code_is_told_as_it_was(ground: Ground) -> None:
    end, sink = await ground.run("exit 3")
    assert (end.outcome, end.exit_code, end.signal) == (Outcome.EXITED, 3, None)
    assert sink.stdout == b"before\n"


@on_every_tier
async def test_death_by_signal_is_told_with_the_signal(ground: Ground) -> None:
    end, _ = await ground.run("signal 6")
    assert (end.outcome, end.exit_code, end.signal) == (Outcome.SIGNALLED, None, 6)


@on_every_tier
async def test_the_stamps_of_an_end_are_in_order(ground: Ground) -> None:
    end, _ = await ground.run("hello")
    assert 0 < end.ready_ns <= end.done_ns
    assert end.usage.processes >= 0


@on_every_tier
async def test_stdin_arrives_whole_even_when_it_is_larger_than_a_pipe(ground: Ground) -> None:
    text = bytes(range(256)) * 4096
    _, sink = await ground.run("stdin", stdin=text)
    assert sink.stdout == text


@on_every_tier
async def test_a_program_that_reads_no_stdin_ends_all_the_same(ground: Ground) -> None:
    end, sink = await ground.run("ignore stdin", stdin=b"x" * (1 << 20))
    assert (end.exit_code, sink.stdout) == (0, b"done\n")


@on_every_tier
async def test_arguments_and_variables_reach_the_program(ground: Ground) -> None:
    _, sink = await ground.run("args", args=("one", "two words"))
    assert sink.stdout == b"one two words\n"
    _, sink = await ground.run("env", env=(("COLOUR", "r=ed"),))
    assert sink.stdout == b"r=ed\n"


@on_every_tier
async def test_files_of_the_step_are_there_when_the_program_starts(ground: Ground) -> None:
    _, sink = await ground.run("read", files=(InputFile("given.txt", b"content"),))
    assert sink.stdout == b"content"
    _, sink = await ground.run("read /tmp", files=(InputFile("/tmp/given.txt", b"content"),))
    assert sink.stdout == b"content"


@on_every_tier
async def test_the_programs_text_is_a_file_it_can_read(ground: Ground) -> None:
    _, sink = await ground.run("read itself")
    assert sink.stdout == ground.case.step("read itself").code


@on_every_tier
async def test_files_put_into_a_parked_sandbox_are_there_when_the_program_starts(ground: Ground) -> None:
    sandbox, sink = await ground.fork(), Recorder()
    await sandbox.put([InputFile("given.txt", b"put before")])
    await sandbox.exec(ground.case.step("read"), LIMITS, sink)
    assert sink.stdout == b"put before"
    await sandbox.close()


@on_every_tier
async def test_a_file_outside_the_writable_directories_is_refused(ground: Ground) -> None:
    sandbox = await ground.fork()
    for path in ("../escape", "/etc/escape", "/sandbox/../etc/escape"):
        with pytest.raises(FileNotInSandbox):
            await sandbox.put([InputFile(path, b"")])
    await sandbox.close()


@on_every_tier
async def test_files_are_collected_by_path_and_by_glob_after_the_end(ground: Ground) -> None:
    sandbox = await ground.fork()
    await sandbox.exec(ground.case.step("write"), LIMITS, Recorder())
    collected = await sandbox.collect(["made.txt", "sub/*.txt", "/tmp/other.txt", "missing.txt"], 1000)
    assert {file.path: file.content for file in collected.files} == {
        "made.txt": b"one",
        "sub/deep.txt": b"two",
        "/tmp/other.txt": b"three",
    }
    await sandbox.close()


@on_every_tier
async def test_what_is_no_regular_file_or_too_large_is_skipped_by_name(ground: Ground) -> None:
    sandbox = await ground.fork()
    await sandbox.exec(ground.case.step("write"), LIMITS, Recorder())
    collected = await sandbox.collect(["way"], 1000)
    assert (collected.files, collected.skipped) == ((), ("way",))
    collected = await sandbox.collect(["made.txt"], 2)
    assert (collected.files, collected.skipped) == ((), ("made.txt",))
    await sandbox.close()


@on_every_tier
async def test_a_star_stays_within_one_directory(ground: Ground) -> None:
    sandbox = await ground.fork()
    await sandbox.exec(ground.case.step("write"), LIMITS, Recorder())
    collected = await sandbox.collect(["*.txt"], 1 << 20)
    assert "made.txt" in {file.path for file in collected.files}
    assert "sub/deep.txt" not in {file.path for file in collected.files}
    await sandbox.close()


@on_every_tier
async def test_a_sandbox_has_nothing_of_the_one_before(ground: Ground) -> None:
    await ground.run("write")
    end, _ = await ground.run("is fresh")
    assert end.exit_code == 1


@on_every_tier
async def test_a_kill_ends_the_program_with_its_reason_and_the_output_so_far(ground: Ground) -> None:
    sink = Recorder()
    sandbox, task = await ground.begin("forever", sink)
    sandbox.kill(Outcome.TIMED_OUT)
    sandbox.kill(Outcome.OUTPUT_LIMIT)
    end = await task
    assert (end.outcome, end.exit_code, end.signal) == (Outcome.TIMED_OUT, None, 9)
    assert sink.stdout == b"begun\n"
    await sandbox.close()


@on_every_tier
async def test_a_kill_before_the_program_began_has_it_never_run(ground: Ground) -> None:
    sandbox, sink = await ground.fork(), Recorder()
    sandbox.kill(Outcome.TIMED_OUT)
    end = await sandbox.exec(ground.case.step("hello"), LIMITS, sink)
    assert (end.outcome, sink.stdout) == (Outcome.TIMED_OUT, b"")
    await sandbox.close()


@on_every_tier
async def test_a_kill_after_the_end_changes_nothing(ground: Ground) -> None:
    sandbox = await ground.fork()
    end = await sandbox.exec(ground.case.step("hello"), LIMITS, Recorder())
    sandbox.kill(Outcome.TIMED_OUT)
    assert end.outcome == Outcome.EXITED
    await sandbox.close()


@on_every_tier
async def test_a_sink_that_refuses_gets_no_more_until_it_resumes_and_then_everything(ground: Ground) -> None:
    sandbox, sink = await ground.fork(), Recorder(pausing=True)
    loop = asyncio.get_running_loop()
    task = loop.create_task(sandbox.exec(ground.case.step("flood"), LIMITS, sink))
    pauses = 0
    while not task.done():
        waiting = loop.create_task(sink.wrote.wait())
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        sink.wrote.clear()
        pauses += sink.paused
        sink.paused = False
        sandbox.resume()
    assert (await task).exit_code == 0
    assert sink.stdout == b"x" * FLOOD_BYTES
    assert sink.broken_promises == 0
    assert pauses > 1
    await sandbox.close()


@on_every_tier
async def test_a_program_whose_output_is_not_read_can_be_killed(ground: Ground) -> None:
    sink = Recorder(pausing=True)
    sandbox, task = await ground.begin("flood", sink)
    sandbox.kill(Outcome.OUTPUT_LIMIT)
    assert (await task).outcome == Outcome.OUTPUT_LIMIT
    await sandbox.close()


@on_every_tier
async def test_closing_a_sandbox_ends_its_program_and_may_be_done_twice(ground: Ground) -> None:
    sandbox, task = await ground.begin("forever", Recorder())
    await asyncio.gather(sandbox.close(), sandbox.close())
    with pytest.raises(GuestLost):
        await task
    await sandbox.close()


@on_every_tier
async def test_cancelling_an_exec_and_closing_leaves_nothing(ground: Ground) -> None:
    sandbox, task = await ground.begin("forever", Recorder())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await sandbox.close()


@on_every_tier
async def test_a_closed_sandbox_runs_nothing_and_says_that_nothing_started(ground: Ground) -> None:
    sandbox = await ground.fork()
    await sandbox.close()
    with pytest.raises(GuestLost) as caught:
        await sandbox.exec(ground.case.step("hello"), LIMITS, Recorder())
    assert caught.value.step == BEFORE_START


@on_every_tier
async def test_cancelling_a_fork_leaves_nothing(ground: Ground) -> None:
    template = await ground.tier.template(ground.case.key)
    task = asyncio.get_running_loop().create_task(template.fork())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@on_every_tier
async def test_sandboxes_run_side_by_side(ground: Ground) -> None:
    sinks = [Recorder() for _ in range(4)]
    begun = [await ground.begin("forever", sink) for sink in sinks]
    for sandbox, _ in begun:
        sandbox.kill(Outcome.SIGNALLED)
    ends = await asyncio.gather(*(task for _, task in begun))
    assert {end.outcome for end in ends} == {Outcome.SIGNALLED}
    for sandbox, _ in begun:
        await sandbox.close()


@on_every_tier
async def test_a_template_is_made_once_and_says_that_it_is_ready(ground: Ground) -> None:
    template = await ground.tier.template(ground.case.key)
    assert await ground.tier.template(ground.case.key) is template
    health = template.health()
    assert (template.key, health.key, health.ready) == (ground.case.key, ground.case.key, True)
    assert health.memory_bytes > 0


@on_every_tier
async def test_a_template_nobody_described_cannot_be_made(ground: Ground) -> None:
    with pytest.raises(TemplateFailed):
        await ground.tier.template("no-such-template")


@on_every_tier
async def test_closing_the_tier_ends_everything_and_forks_nothing_more(ground: Ground) -> None:
    template = await ground.tier.template(ground.case.key)
    _, task = await ground.begin("forever", Recorder())
    await ground.tier.close()
    with pytest.raises(GuestLost):
        await task
    with pytest.raises(TierError):
        await template.fork()


def test_every_program_of_the_contract_is_written_for_every_tier() -> None:
    for adapter in TIER_FACTORIES.values():
        for name in PROGRAMS:
            assert adapter.step(name).code
