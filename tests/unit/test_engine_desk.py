"""Files and terminals of sessions, as the engine serves them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from sandfork.engine.sessions import SessionSettings
from sandfork.engine.terminals import SHOWN_BYTES, UNREAD_BYTES, Connection
from sandfork.errors import FileNotInSandbox, FileTooLarge, ForkFailed, InvalidRequest, Overloaded, SessionNotFound
from sandfork.model import SessionSpec, TerminalSpec, TerminalState
from tests.support.clock import in_virtual_time, pass_time, settle
from tests.support.engine import CALLER, KEY, SETTINGS, USE, Rig, rig

TWO = replace(SETTINGS, sessions=SessionSettings(terminals=2, idle_s=10, file_bytes=8))
UNKNOWN = replace(KEY, name="unknown")


async def pieces(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def open_terminal(it: Rig, text: str, name: str | None = None) -> TerminalState:
    """Open a terminal with a script of the fake tier, in a session that is made if need be."""
    if not len(it.engine.sessions):
        await it.engine.sessions.create(KEY, CALLER, SessionSpec())
    return await it.engine.sessions.open_terminal(KEY, TerminalSpec(("sh", text)), name)


async def read_all(connection: Connection) -> bytes:
    shown = b""
    while part := await connection.read():
        shown += part
    return shown


def terminal_names(it: Rig) -> list[str]:
    return [state.name for state in it.engine.sessions.terminals(KEY)]


# --- files ---


@in_virtual_time
async def test_files_of_a_session_are_written_listed_read_and_deleted() -> None:
    async with rig() as it:
        sessions = it.engine.sessions
        await it.step("write made.txt one")
        assert await sessions.write_file(KEY, "sent/file", pieces(b"tw", b"o")) == 3
        assert [entry.name for entry in await sessions.list_files(KEY, "")] == ["made.txt", "sent"]
        size, chunks = await sessions.read_file(KEY, "made.txt")
        assert (size, [chunk async for chunk in chunks]) == (3, [b"one"])
        assert (await it.step("cat sent/file")).stdout == b"two"
        await sessions.delete_file(KEY, "sent")
        with pytest.raises(FileNotInSandbox):
            await sessions.read_file(KEY, "sent/file")


@in_virtual_time
async def test_a_file_larger_than_the_bound_is_not_read() -> None:
    async with rig(TWO) as it:
        await it.step("write small 12345678\nwrite large 123456789")
        assert (await it.engine.sessions.read_file(KEY, "small"))[0] == 8
        with pytest.raises(FileTooLarge, match="larger"):
            await it.engine.sessions.read_file(KEY, "large")


@in_virtual_time
async def test_files_and_terminals_of_a_session_that_is_not_there_are_not_found() -> None:
    async with rig() as it:
        await it.step("out a")
        sessions = it.engine.sessions
        for answer in (
            sessions.list_files(UNKNOWN, ""),
            sessions.read_file(UNKNOWN, "a"),
            sessions.write_file(UNKNOWN, "a", pieces()),
            sessions.delete_file(UNKNOWN, "a"),
            sessions.open_terminal(UNKNOWN, TerminalSpec()),
            sessions.close_terminal(UNKNOWN, "t"),
            sessions.close_terminal(KEY, "t"),
        ):
            with pytest.raises(SessionNotFound):
                await answer
        for look in (sessions.terminal, sessions.connect):
            with pytest.raises(SessionNotFound):
                look(KEY, "t")
        with pytest.raises(SessionNotFound):
            sessions.terminals(UNKNOWN)
        with pytest.raises(SessionNotFound):
            sessions.resize_terminal(KEY, "t", 80, 24)


@in_virtual_time
async def test_a_session_that_ends_while_a_file_is_written_says_so() -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"a"
        await it.engine.sessions.delete(KEY)
        await settle()
        yield b"b"

    async with rig() as it:
        await it.step("out a")
        with pytest.raises(SessionNotFound, match="deleted"):
            await it.engine.sessions.write_file(KEY, "f", slow())


@in_virtual_time
async def test_a_session_is_in_use_until_a_file_was_written() -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"a"
        await pass_time(9)
        yield b"b"

    async with rig(TWO) as it:
        await it.step("out a")
        await it.engine.sessions.write_file(KEY, "f", slow())
        await pass_time(9)
        assert len(it.engine.sessions) == 1


# --- terminals ---


@in_virtual_time
async def test_a_terminal_takes_what_is_typed_and_shows_what_its_command_writes() -> None:
    async with rig() as it:
        state = await open_terminal(it, "size\nenv TERM\nread\nsize\nexit 5")
        assert (state.session, state.cols, state.rows, state.exit_code) == ("s", 80, 24, None)
        connection = it.engine.sessions.connect(KEY, state.name)
        assert await connection.read() == b"24 80\nxterm-256color\n"
        it.engine.sessions.resize_terminal(KEY, state.name, 120, 40)
        await connection.write(b"typed\n")
        assert await read_all(connection) == b"typed\n40 120\n"
        told = it.engine.sessions.terminal(KEY, state.name)
        assert (told.exit_code, told.cols, told.rows, connection.exit_code) == (5, 120, 40, 5)
        await connection.write(b"nobody is there")
        assert it.engine.sessions.terminals(KEY) == [told]


@in_virtual_time
async def test_a_command_that_a_signal_ended_has_its_number_for_an_exit_code() -> None:
    async with rig() as it:
        for text, code in (("signal 15", 143), ("lost", 137)):
            state = await open_terminal(it, text)
            assert await read_all(it.engine.sessions.connect(KEY, state.name)) == b""
            assert it.engine.sessions.terminal(KEY, state.name).exit_code == code


@in_virtual_time
async def test_a_terminal_has_the_environment_of_its_session_and_its_own() -> None:
    async with rig() as it:
        await it.engine.sessions.create(KEY, CALLER, SessionSpec(env=(("A", "session"), ("B", "session"))))
        spec = TerminalSpec(("sh", "env A\nenv B"), env=(("B", "own"),))
        state = await it.engine.sessions.open_terminal(KEY, spec)
        assert await read_all(it.engine.sessions.connect(KEY, state.name)) == b"session\nown\n"


@in_virtual_time
async def test_what_no_terminal_can_be_is_refused() -> None:
    async with rig() as it:
        await open_terminal(it, "read", "t")
        sessions = it.engine.sessions
        for spec in (
            TerminalSpec(()),
            TerminalSpec(("",)),
            TerminalSpec(("sh", "a\0b")),
            TerminalSpec(cols=0),
            TerminalSpec(rows=1001),
            TerminalSpec(env=(("1", "x"),)),
        ):
            with pytest.raises(InvalidRequest):
                await sessions.open_terminal(KEY, spec)
        with pytest.raises(InvalidRequest, match="already"):
            await sessions.open_terminal(KEY, TerminalSpec(), "t")
        with pytest.raises(InvalidRequest):
            sessions.resize_terminal(KEY, "t", 80, 0)
        assert terminal_names(it) == ["t"]


@in_virtual_time
async def test_a_terminal_stays_when_its_client_goes_and_tells_the_next_what_it_showed_last() -> None:
    async with rig() as it:
        state = await open_terminal(it, f"flood {SHOWN_BYTES}\nout end\nread")
        first = it.engine.sessions.connect(KEY, state.name)
        assert len(await first.read()) >= SHOWN_BYTES
        first.close()
        first.close()
        assert await first.read() == b""
        second = it.engine.sessions.connect(KEY, state.name)
        shown = await second.read()
        assert (len(shown), shown[-4:]) == (SHOWN_BYTES, b"end\n")


@in_virtual_time
async def test_a_new_client_takes_the_place_of_the_old() -> None:
    async with rig() as it:
        state = await open_terminal(it, "read\nread")
        first = it.engine.sessions.connect(KEY, state.name)
        reading = asyncio.ensure_future(first.read())
        await settle()
        second = it.engine.sessions.connect(KEY, state.name)
        assert await reading == b""
        await first.write(b"not typed\n")
        await second.write(b"one\ntwo\n")
        assert await read_all(second) == b"one\ntwo\n"
        first.close()
        assert second.exit_code == 0


@in_virtual_time
async def test_a_client_that_reads_nothing_holds_the_command_up_until_it_reads_or_goes() -> None:
    async with rig() as it:
        much = 2 * UNREAD_BYTES
        for how in ("reads", "goes", "is replaced"):
            state = await open_terminal(it, f"read\nflood {much}\nexit 3")
            client = it.engine.sessions.connect(KEY, state.name)
            await client.write(b"\n")
            await pass_time(1)
            assert it.engine.sessions.terminal(KEY, state.name).exit_code is None
            if how == "reads":
                assert len(await read_all(client)) == 1 + much
            elif how == "goes":
                client.close()
            else:
                await read_all(it.engine.sessions.connect(KEY, state.name))
            await settle()
            assert it.engine.sessions.terminal(KEY, state.name).exit_code == 3


@in_virtual_time
async def test_a_session_has_so_many_terminals_at_most_and_those_that_are_over_make_room() -> None:
    async with rig(TWO) as it:
        await it.engine.sessions.create(KEY, CALLER, SessionSpec())
        opened = await asyncio.gather(*(open_terminal(it, "read", name) for name in "abc"), return_exceptions=True)
        (refused,) = (each for each in opened if isinstance(each, BaseException))
        assert isinstance(refused, Overloaded)
        assert refused.retry_after_s
        assert terminal_names(it) == ["a", "b"]
        await it.engine.sessions.connect(KEY, "a").write(b"\n")
        await settle()
        await open_terminal(it, "read", "d")
        assert terminal_names(it) == ["b", "d"]
        await it.engine.sessions.close_terminal(KEY, "b")
        await open_terminal(it, "read", "e")
        assert terminal_names(it) == ["d", "e"]


@in_virtual_time
async def test_two_terminals_of_one_name_are_not_opened_at_once() -> None:
    async with rig() as it:
        await it.engine.sessions.create(KEY, CALLER, SessionSpec())
        opened = await asyncio.gather(*(open_terminal(it, "read", "t") for _ in range(2)), return_exceptions=True)
        assert [isinstance(each, InvalidRequest) for each in opened] == [False, True]
        assert terminal_names(it) == ["t"]


@in_virtual_time
async def test_a_terminal_that_cannot_be_opened_leaves_its_place() -> None:
    async with rig(TWO) as it:
        await it.engine.sessions.create(KEY, CALLER, SessionSpec())
        for _ in range(3):
            it.tier.failing_forks = 1
            with pytest.raises(ForkFailed):
                await open_terminal(it, "read")
        it.tier.failing_forks = 0
        await open_terminal(it, "read")
        assert len(terminal_names(it)) == 1


@in_virtual_time
async def test_closing_a_terminal_ends_its_command_and_its_client() -> None:
    async with rig() as it:
        state = await open_terminal(it, "trap\nsleep 100")
        client = it.engine.sessions.connect(KEY, state.name)
        await it.engine.sessions.close_terminal(KEY, state.name)
        assert await client.read() == b""
        assert terminal_names(it) == []
        await settle()
        assert client.exit_code == 137


@in_virtual_time
async def test_a_terminal_ends_with_its_session_and_its_client_is_told() -> None:
    async with rig() as it:
        state = await open_terminal(it, "sleep 100")
        client = it.engine.sessions.connect(KEY, state.name)
        reading = asyncio.ensure_future(client.read())
        await settle()
        await it.engine.sessions.delete(KEY)
        assert await reading == b""
        assert client.exit_code == 137


@in_virtual_time
async def test_a_session_that_ends_while_a_terminal_opens_says_so() -> None:
    async with rig() as it:
        await it.engine.sessions.create(KEY, CALLER, SessionSpec())
        it.tier.fork_s = 5
        opening = asyncio.ensure_future(open_terminal(it, "read"))
        await pass_time(1)
        await it.engine.sessions.delete(KEY)
        with pytest.raises(SessionNotFound, match="deleted"):
            await opening


@in_virtual_time
async def test_a_limit_kill_takes_the_terminals_of_the_session_and_one_opened_then_waits_for_it() -> None:
    async with rig(close_s=2) as it:
        await it.step("out a")
        old = await open_terminal(it, "sleep 100")
        await it.step("limit cpu_limit")
        new = await open_terminal(it, "read")
        await settle()
        assert it.engine.sessions.terminal(KEY, old.name).exit_code == 137
        assert it.engine.sessions.terminal(KEY, new.name).exit_code is None


@in_virtual_time
async def test_a_session_is_in_use_while_a_client_is_at_a_terminal_and_for_its_idle_time_after() -> None:
    async with rig(TWO) as it:
        state = await open_terminal(it, "sleep 1000")
        client = it.engine.sessions.connect(KEY, state.name)
        await pass_time(29)
        assert len(it.engine.sessions) == 1
        client.close()
        await pass_time(9)
        assert len(it.engine.sessions) == 1
        await pass_time(2)
        assert len(it.engine.sessions) == 0


@in_virtual_time
async def test_a_terminal_runs_beside_the_executions_of_its_session() -> None:
    async with rig() as it:
        await it.step("set x one\nwrite f shared")
        state = await open_terminal(it, "cat f\nread")
        running = asyncio.ensure_future(it.step("sleep 2\nget x", USE))
        client = it.engine.sessions.connect(KEY, state.name)
        await client.write(b"typed\n")
        assert await read_all(client) == b"sharedtyped\n"
        assert (await running).stdout == b"one\n"
