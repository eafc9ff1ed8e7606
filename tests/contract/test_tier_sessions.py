"""What every tier does in a sandbox that is kept: processes that last and that join, signals, files, terminals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from signal import SIGINT, SIGTERM

import pytest

from sandfork.errors import DiskFull, FileNotInSandbox, FileTooLarge, ForkFailed, GuestLost
from sandfork.model import InputFile, Outcome, Stream
from sandfork.tiers.base import BEFORE_START, Process, Sandbox
from tests.contract.ground import LIMITS, Ground, Recorder, on_every_tier


async def pieces(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def content_of(sandbox: Sandbox, path: str) -> bytes:
    size, chunks = await sandbox.files.read(path, 1 << 30)
    content = b"".join([chunk async for chunk in chunks])
    assert len(content) == size
    return content


async def has_state(ground: Ground, process: Process) -> bool:
    end, sink = await ground.run_in(process, "get", lasting=True)
    return (end.exit_code, sink.stdout) == (0, b"one\n")


async def assert_takes_no_step(ground: Ground, process: Process) -> None:
    with pytest.raises(GuestLost) as caught:
        await ground.run_in(process, "hello")
    assert caught.value.step == BEFORE_START


# --- lasting processes ---


@on_every_tier
async def test_a_lasting_process_keeps_its_state_from_step_to_step(ground: Ground) -> None:
    sandbox = await ground.keep()
    end, _ = await ground.run_in(sandbox, "set", lasting=True)
    assert (end.exit_code, end.alive) == (0, True)
    assert await has_state(ground, sandbox)
    other = await ground.join(sandbox)
    assert not await has_state(ground, other)
    await sandbox.close()


@on_every_tier
async def test_a_process_that_does_not_last_takes_one_step(ground: Ground) -> None:
    sandbox = await ground.keep()
    end, _ = await ground.run_in(sandbox, "hello")
    assert not end.alive
    await assert_takes_no_step(ground, sandbox)
    await sandbox.close()


@on_every_tier
async def test_a_lasting_process_outlives_the_failure_and_the_exit_of_a_step(ground: Ground) -> None:
    sandbox = await ground.keep()
    await ground.run_in(sandbox, "set", lasting=True)
    end, sink = await ground.run_in(sandbox, "exit 3", lasting=True)
    assert (end.exit_code, end.alive, sink.stdout) == (3, True, b"before\n")
    assert await has_state(ground, sandbox)
    await sandbox.close()


@on_every_tier
async def test_a_lasting_process_that_ends_says_so_and_takes_no_step_more(ground: Ground) -> None:
    for name, told in (("die 7", (Outcome.EXITED, 7, None)), ("signal 6", (Outcome.SIGNALLED, None, 6))):
        sandbox = await ground.keep()
        end, _ = await ground.run_in(sandbox, name, lasting=True)
        assert (end.outcome, end.exit_code, end.signal, end.alive) == (*told, False)
        await assert_takes_no_step(ground, sandbox)
        await sandbox.close()


@on_every_tier
async def test_stdin_environment_and_files_of_a_step_are_its_own(ground: Ground) -> None:
    sandbox = await ground.keep()
    for text in (b"one\n", b"", b"x" * 200_000):
        _, sink = await ground.run_in(sandbox, "stdin", lasting=True, stdin=text)
        assert sink.stdout == text
    _, sink = await ground.run_in(sandbox, "env", lasting=True, env=(("COLOUR", "red"),))
    assert sink.stdout == b"red\n"
    _, sink = await ground.run_in(sandbox, "read", lasting=True, files=(InputFile("given.txt", b"given"),))
    assert sink.stdout == b"given"
    await sandbox.close()


@on_every_tier
async def test_a_step_whose_files_cannot_be_had_leaves_a_lasting_process_as_it_was(ground: Ground) -> None:
    sandbox = await ground.keep()
    await ground.run_in(sandbox, "set", lasting=True)
    with pytest.raises(FileNotInSandbox):
        await ground.run_in(sandbox, "hello", lasting=True, files=(InputFile("../escape", b""),))
    assert await has_state(ground, sandbox)
    await sandbox.close()


@on_every_tier
async def test_rich_values_of_a_step_that_wants_them_come_behind_what_was_written_before(ground: Ground) -> None:
    sandbox = await ground.keep()
    end, sink = await ground.run_in(sandbox, "show", lasting=True, rich=True)
    assert (end.exit_code, sink.stdout) == (0, b"before\nafter\n")
    assert [(shown.kind, shown.data["text/plain"]) for shown in sink.displays] == [("display", "'shown'")]
    assert sink.written_before[0].startswith(b"before\n")
    await sandbox.close()
    end, sink = await ground.run("show nothing")
    assert (end.exit_code, sink.displays) == (0, [])


# --- signals and kills ---


@on_every_tier
async def test_an_interrupt_ends_the_step_of_a_lasting_process_which_keeps_its_state(ground: Ground) -> None:
    sandbox = await ground.keep()
    await ground.run_in(sandbox, "set", lasting=True)
    running = await ground.begin_in(sandbox, "forever", Recorder(), lasting=True)
    sandbox.signal(SIGINT)
    end = await running
    assert (end.outcome, end.exit_code, end.alive) == (Outcome.EXITED, 130, True)
    sandbox.signal(SIGINT)  # nothing runs
    assert await has_state(ground, sandbox)
    await sandbox.close()


@on_every_tier
async def test_a_signal_that_is_not_handled_ends_the_program(ground: Ground) -> None:
    sandbox = await ground.keep()
    running = await ground.begin_in(sandbox, "forever", Recorder(), lasting=True)
    sandbox.signal(SIGTERM)
    end = await running
    assert (end.outcome, end.signal, end.alive) == (Outcome.SIGNALLED, SIGTERM, False)
    await sandbox.close()


@on_every_tier
async def test_a_kill_in_a_kept_sandbox_ends_every_process_and_keeps_the_files(ground: Ground) -> None:
    sandbox = await ground.keep()
    await ground.run_in(sandbox, "set", lasting=True)
    await ground.run_in(await ground.join(sandbox), "write")
    parked, along, killed = [await ground.join(sandbox) for _ in range(3)]
    others = await ground.begin_in(along, "forever", Recorder())
    running = await ground.begin_in(killed, "forever", sink := Recorder(), lasting=True)
    killed.kill(Outcome.TIMED_OUT)
    killed.kill(Outcome.OUTPUT_LIMIT)
    end = await running
    assert (end.outcome, end.signal, end.alive, sink.stdout) == (Outcome.TIMED_OUT, 9, False, b"begun\n")
    await sandbox.cleared()
    assert (await others).outcome is Outcome.SIGNALLED
    for process in (sandbox, parked, along, killed):
        await assert_takes_no_step(ground, process)
    assert await content_of(sandbox, "made.txt") == b"one"
    end, sink = await ground.run_in(await ground.join(sandbox), "is fresh")
    assert (end.exit_code, sink.stdout.strip()) == (0, b"one")
    await sandbox.close()


@on_every_tier
async def test_a_program_that_nobody_waits_for_is_killed_alone(ground: Ground) -> None:
    sandbox = await ground.keep()
    await ground.run_in(sandbox, "set", lasting=True)
    along, killed = [await ground.join(sandbox) for _ in range(2)]
    others = await ground.begin_in(along, "forever", Recorder())
    running = await ground.begin_in(killed, "forever", Recorder())
    killed.kill(Outcome.SIGNALLED)
    end = await running
    assert (end.outcome, end.signal, end.alive) == (Outcome.SIGNALLED, 9, False)
    await sandbox.cleared()
    await killed.close()
    assert not others.done()
    assert await has_state(ground, sandbox)
    along.kill(Outcome.TIMED_OUT)
    assert (await others).outcome is Outcome.TIMED_OUT
    await sandbox.close()


@on_every_tier
async def test_a_kill_of_a_lasting_process_that_rests_does_nothing(ground: Ground) -> None:
    sandbox = await ground.keep()
    await ground.run_in(sandbox, "set", lasting=True)
    sandbox.kill(Outcome.TIMED_OUT)
    await sandbox.cleared()
    assert await has_state(ground, sandbox)
    await sandbox.close()


@on_every_tier
async def test_a_lasting_process_is_read_to_the_end_of_its_step_before_that_is_told(ground: Ground) -> None:
    sandbox, sink = await ground.keep(), Recorder(pausing=True)
    loop = asyncio.get_running_loop()
    task = loop.create_task(sandbox.exec(ground.case.step("flood", lasting=True), LIMITS, sink))
    while not task.done():
        waiting = loop.create_task(sink.wrote.wait())
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        sink.wrote.clear()
        sink.paused = False
        sandbox.resume()
    assert ((await task).alive, len(sink.stdout), sink.broken_promises) == (True, 1 << 20, 0)
    await sandbox.close()


# --- joining and closing ---


@on_every_tier
async def test_a_process_that_joins_sees_the_files_and_can_be_closed_by_itself(ground: Ground) -> None:
    sandbox = await ground.keep()
    await ground.run_in(sandbox, "set", lasting=True)
    await sandbox.put([InputFile("given.txt", b"content")])
    joined = await ground.join(sandbox)
    _, sink = await ground.run_in(joined, "read")
    assert sink.stdout == b"content"
    await joined.close()
    await joined.close()
    running = await ground.begin_in(other := await ground.join(sandbox), "forever", Recorder())
    await other.close()
    with pytest.raises(GuestLost):
        await running
    assert await has_state(ground, sandbox)
    await sandbox.close()


@on_every_tier
async def test_closing_a_sandbox_takes_all_that_joined_along(ground: Ground) -> None:
    sandbox = await ground.keep()
    first = await ground.begin_in(sandbox, "forever", Recorder(), lasting=True)
    joined = [await ground.join(sandbox) for _ in range(3)]
    second = await ground.begin_in(joined[0], "forever", Recorder())
    await sandbox.close()
    for task in (first, second):
        with pytest.raises(GuestLost):
            await task
    ground.assert_nothing_left()
    await asyncio.gather(*(process.close() for process in joined))
    with pytest.raises(ForkFailed):
        await ground.join(sandbox)
    for answer in (sandbox.files.list(""), sandbox.files.read("x", 1), sandbox.files.delete("x")):
        with pytest.raises(GuestLost):
            await answer


@on_every_tier
async def test_a_process_that_joins_while_the_sandbox_is_closed_leaves_nothing(ground: Ground) -> None:
    sandbox = await ground.keep()
    joining = asyncio.get_running_loop().create_task(ground.join(sandbox))
    await asyncio.sleep(0)
    await sandbox.close()
    (joined,) = await asyncio.gather(joining, return_exceptions=True)
    if isinstance(joined, BaseException):
        assert isinstance(joined, ForkFailed)
    else:  # it was quick enough
        await assert_takes_no_step(ground, joined)
        await joined.close()


# --- stdin that is fed ---


@on_every_tier
async def test_what_is_fed_reaches_the_program_until_stdin_is_closed(ground: Ground) -> None:
    sandbox, sink = await ground.fork(), Recorder()
    early = asyncio.get_running_loop().create_task(sandbox.feed(b"two\n"))
    await asyncio.sleep(0)
    running = await ground.begin_in(sandbox, "lines", sink, stdin=b"one\n", keep_stdin=True)
    await early
    await sink.until(b"two\n")
    large = b"x" * 300_000 + b"\n"
    await sandbox.feed(large)
    await sandbox.feed(b"")
    assert (await running).exit_code == 0
    assert sink.stdout == b"one\ntwo\n" + large
    await sandbox.feed(b"nobody reads this")
    await sandbox.close()
    await sandbox.feed(b"nor this")


@on_every_tier
async def test_feeding_a_program_that_reads_nothing_waits_until_it_ends(ground: Ground) -> None:
    sandbox = await ground.fork()
    running = await ground.begin_in(sandbox, "forever", Recorder(), keep_stdin=True)
    feeding = asyncio.get_running_loop().create_task(sandbox.feed(b"x" * (1 << 20)))
    await asyncio.sleep(0)
    assert not feeding.done()
    sandbox.kill(Outcome.SIGNALLED)
    await running
    await sandbox.close()
    await feeding


# --- files ---


@on_every_tier
async def test_files_are_written_listed_read_and_deleted(ground: Ground) -> None:
    sandbox = await ground.keep()
    files, large = sandbox.files, bytes(range(256)) * 3000
    assert list(await files.list("")) == []
    assert await files.write("deep/er/file.bin", pieces(large[:7], large[7:])) == len(large)
    assert await files.write("/tmp/other", pieces(b"o")) == 1
    assert await files.write("/sandbox/plain", pieces(b"first")) == 5
    assert await files.write("plain", pieces(b"p")) == 1
    assert await files.write("empty", pieces()) == 0
    assert await content_of(sandbox, "/sandbox/deep/er/file.bin") == large
    assert [await content_of(sandbox, path) for path in ("/tmp/other", "./plain", "empty")] == [b"o", b"p", b""]
    for directory in ("", ".", "/sandbox", "/sandbox/"):
        listed = [(entry.name, entry.kind, entry.size_bytes) for entry in await files.list(directory)]
        assert listed == [("deep", "directory", 0), ("empty", "file", 0), ("plain", "file", 1)]
    assert [entry.name for entry in await files.list("/tmp")] == ["other"]
    assert [entry.kind for entry in await files.list("deep")] == ["directory"]
    await files.delete("plain")
    await files.delete("deep")
    assert [entry.name for entry in await files.list("")] == ["empty"]
    await sandbox.close()


@on_every_tier
async def test_a_file_from_outside_is_what_a_program_sees_and_the_other_way(ground: Ground) -> None:
    sandbox = await ground.keep()
    await sandbox.files.write("given.txt", pieces(b"from ", b"outside"))
    _, sink = await ground.run_in(sandbox, "read", lasting=True)
    assert sink.stdout == b"from outside"
    await ground.run_in(sandbox, "write", lasting=True)
    assert await content_of(sandbox, "sub/deep.txt") == b"two"
    await sandbox.close()


@on_every_tier
async def test_what_is_no_file_or_elsewhere_is_neither_read_written_nor_deleted(ground: Ground) -> None:
    sandbox = await ground.keep()
    files = sandbox.files
    await ground.run_in(sandbox, "write")
    for path in ("way", "sub", "missing", "../made.txt", "/etc/passwd", "/sandbox/../etc/passwd", "", "a\0b"):
        with pytest.raises(FileNotInSandbox):
            await files.read(path, 1 << 20)
    for path in ("way", "sub", "made.txt/x", "../x", "/etc/x", "", "/sandbox", "a\0b"):
        with pytest.raises(FileNotInSandbox):
            await files.write(path, pieces(b"x"))
    for path in ("missing", "../made.txt", "/etc/passwd", "", "/sandbox", "/tmp"):
        with pytest.raises(FileNotInSandbox):
            await files.delete(path)
    for path in ("missing", "made.txt", "..", "/etc", "/"):
        with pytest.raises(FileNotInSandbox):
            await files.list(path)
    assert {entry.name: entry.kind for entry in await files.list("")}["way"] == "link"
    await files.delete("way")
    with pytest.raises(FileTooLarge, match="larger"):
        await files.read("made.txt", 2)
    assert await content_of(sandbox, "made.txt") == b"one"
    await sandbox.close()


@on_every_tier
async def test_a_file_that_does_not_stay_the_same_ends_its_reading(ground: Ground) -> None:
    sandbox = await ground.keep()
    await sandbox.files.write("large", pieces(b"x" * (1 << 20)))
    _, chunks = await sandbox.files.read("large", 1 << 30)
    assert await anext(chunks)
    await sandbox.files.delete("large")
    with pytest.raises(FileNotInSandbox):
        await anext(chunks)
    await sandbox.close()


@on_every_tier
async def test_a_write_that_breaks_off_or_finds_no_room_leaves_no_file(ground: Ground) -> None:
    async def breaks() -> AsyncIterator[bytes]:
        yield b"x" * 1000
        raise ConnectionResetError

    sandbox = await ground.keep(replace(LIMITS, disk_bytes=1 << 20))
    with pytest.raises(ConnectionResetError):
        await sandbox.files.write("part", breaks())
    with pytest.raises(DiskFull):
        await sandbox.files.write("big", pieces(*[b"x" * (1 << 19)] * 4))
    assert await sandbox.files.write("small", pieces(b"s")) == 1
    assert [entry.name for entry in await sandbox.files.list("")] == ["small"]
    await sandbox.close()


# --- terminals ---


@on_every_tier
async def test_a_terminal_knows_its_size_takes_what_is_typed_and_shows_it(ground: Ground) -> None:
    sandbox, sink = await ground.keep(), Recorder()
    terminal = await ground.join(sandbox, (100, 30))
    running = await ground.begin_in(terminal, "terminal", sink, keep_stdin=True)
    await sink.until(b"30 100")
    terminal.resize(120, 40)  # type: ignore[attr-defined]  # it joined with a terminal
    await terminal.feed(b"typed\n")
    assert (await running).exit_code == 0
    assert sink.stdout.index(b"30 100") < sink.stdout.index(b"typed") < sink.stdout.index(b"40 120")
    assert {stream for stream, _ in sink.chunks} == {Stream.STDOUT}
    await terminal.close()
    await sandbox.close()
