"""Parts of the composition root: the log, the bounds on a connection, what counts as loopback, the doctor's verdict."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sandfork.config import Config
from sandfork.config.schema import (
    Admission,
    DefaultLimits,
    LimitSettings,
    MaximumLimits,
    Pool,
    Server,
    Sessions,
)
from sandfork.engine.engine import Engine
from sandfork.languages.catalogue import Catalogue
from sandfork.model import TemplateHealth
from sandfork.serve import Refused, dialect_bounds, tell_templates
from sandfork.serve_doctor import Check, State, is_fatal
from sandfork.serve_engine import default_limits, engine_settings, maximum_limits
from sandfork.serve_http import HEAD_S, MAX_HEAD_BYTES, BoundedProtocol, HeadWithBody, build_server
from sandfork.serve_listen import is_loopback
from sandfork.serve_log import DELAY_S, JsonFormatter, LineWriter, LoggedLines
from sandfork.serve_tier import fitting_sandboxes, most_sandboxes, process_settings, tell_few_files
from tests.support.clock import in_virtual_time, virtual_loop

Pipe = tuple[int, int]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """A pipe as (read end that does not block, write end)."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    yield reading, writing
    os.close(reading)
    os.close(writing)


def read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 20)
    except BlockingIOError:
        return b""


def test_without_a_loop_a_line_is_written_at_once(pipe: Pipe) -> None:
    LineWriter(pipe[1]).write(b"line\n")
    assert read(pipe[0]) == b"line\n"


@in_virtual_time
async def test_on_a_loop_lines_are_written_together_a_moment_later() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    lines = LineWriter(writing)
    lines.defer_on(virtual_loop())
    lines.write(b"one\n")
    lines.write(b"two\n")
    assert read(reading) == b""
    await asyncio.sleep(DELAY_S)
    assert read(reading) == b"one\ntwo\n"
    lines.write(b"three\n")
    lines.defer_on(None)
    assert read(reading) == b"three\n"
    await asyncio.sleep(DELAY_S)
    os.close(reading)
    os.close(writing)


def test_a_warning_does_not_wait_and_takes_what_came_before_along(pipe: Pipe) -> None:
    loop = asyncio.new_event_loop()
    lines = LineWriter(pipe[1])
    lines.defer_on(loop)
    handler = LoggedLines(lines)
    handler.setFormatter(JsonFormatter())
    handler.handle(logging.makeLogRecord({"levelno": logging.INFO, "levelname": "INFO", "msg": "one"}))
    assert read(pipe[0]) == b""
    handler.handle(logging.makeLogRecord({"levelno": logging.WARNING, "levelname": "WARNING", "msg": "two"}))
    loop.close()
    assert [json.loads(line)["message"] for line in read(pipe[0]).splitlines()] == ["one", "two"]


def test_a_reader_that_stands_still_neither_blocks_nor_costs_more_than_the_bound(pipe: Pipe) -> None:
    lines = LineWriter(pipe[1], max_pending_bytes=1000)
    for number in range(20_000):
        lines.write(b"%08d\n" % number)
    written = read(pipe[0]).splitlines()
    lines.flush()
    lines.flush()
    later = read(pipe[0]).splitlines()
    assert written == [b"%08d" % number for number in range(len(written))]
    (told,) = [json.loads(line) for line in later if line.startswith(b"{")]
    kept = len(written) + len(later) - 1
    assert told["dropped_lines"] == 20_000 - kept
    assert kept * 9 <= (64 << 10) + 1000


def test_a_reader_that_is_gone_does_not_end_the_service() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    lines = LineWriter(writing)
    lines.write(b"to nobody\n")
    os.close(writing)


def test_a_message_with_a_newline_stays_one_line_of_json() -> None:
    record = logging.makeLogRecord({"levelname": "INFO", "name": "x", "msg": "a\nfake line\x1b[31m", "size": 3})
    line = JsonFormatter().format(record)
    assert line.isprintable()
    assert json.loads(line) | {"ts": 0} == {
        "ts": 0,
        "event": "log",
        "level": "info",
        "logger": "x",
        "message": "a\nfake line\x1b[31m",
        "size": 3,
    }


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.0.2.1", False),
        ("no.such.host.invalid", False),
    ],
)
def test_loopback_is_what_only_this_machine_reaches(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


class Transport(asyncio.Transport):
    """Keeps what is written and whether it was closed."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def set_protocol(self, protocol: Any) -> None:
        raise AssertionError("no request here asks for another protocol")


async def answer_nothing(scope: Any, receive: Any, send: Any) -> None:
    """An application for requests that never reach it."""
    raise AssertionError("no request here is complete")


def connected() -> tuple[BoundedProtocol, Transport]:
    server = build_server(answer_nothing, 1)
    server.config.load()
    protocol = BoundedProtocol(server.config, server.server_state, {}, asyncio.get_running_loop())
    transport = Transport()
    protocol.connection_made(transport)
    return protocol, transport


@in_virtual_time
async def test_a_head_is_answered_431_once_it_is_too_large() -> None:
    protocol, transport = connected()
    protocol.data_received(b"GET / HTTP/1.1\r\nhost: x\r\nx-long: ")
    protocol.data_received(b"a" * MAX_HEAD_BYTES)
    assert not transport.closed
    protocol.data_received(b"a")
    assert transport.closed
    head, _, body = transport.written.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert f"content-length: {len(body)}".encode() in head
    assert json.loads(body) == {"error": "request header is too large."}


@in_virtual_time
async def test_a_connection_that_sends_no_whole_head_in_time_is_closed() -> None:
    for sent in (b"", b"GET / HTTP/1.1\r\nhost:"):
        protocol, transport = connected()
        if sent:
            protocol.data_received(sent)
        protocol.close_if_slow(protocol.waiting_since + HEAD_S)
        assert not transport.closed
        protocol.close_if_slow(protocol.waiting_since + HEAD_S + 0.1)
        assert transport.closed


@pytest.mark.parametrize(
    ("states", "fatal"),
    [
        ({"tier": [State.HELD], "template": [State.HELD, State.MISSING], "language": [State.MISSING]}, False),
        ({"tier": [State.ACCEPTED], "template": [State.HELD], "primitive": [State.ACCEPTED]}, False),
        ({"tier": [State.MISSING], "primitive": [State.MISSING]}, True),
        ({"tier": [State.HELD], "template": [State.MISSING, State.MISSING]}, True),
    ],
)
def test_the_doctor_says_whether_the_service_would_start(states: dict[str, list[State]], fatal: bool) -> None:
    checks = [Check(area, str(number), state) for area, each in states.items() for number, state in enumerate(each)]
    assert is_fatal(checks) is fatal


def test_the_bounds_of_sessions_and_tasks_are_the_configurations() -> None:
    sessions = Sessions(
        max=1,
        max_per_caller=2,
        max_waiting=10,
        idle_s=3,
        lifetime_s=4,
        max_terminals=5,
        max_tasks=6,
        max_task_results=7,
        task_result_s=8,
        task_results_bytes=11,
    )
    made = engine_settings(Config(server=Server(max_upload_bytes=9), sessions=sessions))
    bounds = made.sessions
    assert (bounds.most, bounds.most_of_one, bounds.idle_s, bounds.lifetime_s) == (1, 2, 3, 4)
    assert (bounds.terminals, bounds.file_bytes, bounds.most_waiting) == (5, 9, 10)
    tasks = made.tasks
    assert (tasks.most_running, tasks.most_kept, tasks.keep_s, tasks.keep_bytes) == (6, 7, 8, 11)


def test_what_dialects_know_of_sessions_is_the_configurations() -> None:
    bounds = dialect_bounds(Config(sessions=Sessions(disk_bytes=12 << 20)))
    assert (bounds.session_disk_bytes, bounds.ceilings.disk_bytes) == (12 << 20, 1 << 30)


@pytest.mark.parametrize(
    ("default", "maximum", "limits"),
    [(0.0, 0.0, (math.inf, math.inf)), (2.0, 0.0, (2.0, math.inf)), (0.0, 1.5, (1.5, 1.5)), (0.5, 1.5, (0.5, 1.5))],
)
def test_zero_processors_are_no_quota_and_what_is_born_has_what_most_are_given(
    default: float, maximum: float, limits: tuple[float, float]
) -> None:
    config = Config(limits=LimitSettings(DefaultLimits(cpus=default), MaximumLimits(cpus=maximum)))
    assert (default_limits(config).cpus, maximum_limits(config).cpus) == limits
    assert dialect_bounds(config).ceilings.cpus == limits[1]
    assert process_settings(config, Catalogue.load()).limits.cpus == limits[0]


def test_each_session_has_room_for_its_interpreters_a_program_and_its_terminals() -> None:
    catalogue = Catalogue.load()

    def most(**sessions: int) -> int:
        config = Config(admission=Admission(max_running=10), pool=Pool(size=4), sessions=Sessions(**sessions))
        return most_sandboxes(config, catalogue)

    each = most(max=2, max_terminals=3) - most(max=1, max_terminals=3)
    assert each >= len(catalogue.languages()) + 1 + 3
    assert most(max=1, max_terminals=4) - most(max=1, max_terminals=3) == 1


def test_open_files_bound_how_many_sandboxes_there_are(caplog: pytest.LogCaptureFixture) -> None:
    assert [fitting_sandboxes(files) for files in (64, 260, 1024, 1 << 20)] == [1, 10, 58, 65530]
    few = Config(admission=Admission(max_running=10), pool=Pool(size=1))
    tell_few_files(few, Catalogue.load())
    assert not caplog.records
    tell_few_files(replace(few, admission=Admission(max_running=1 << 30)), Catalogue.load())
    assert "LimitNOFILE" in caplog.text


class Written(asyncio.Transport):
    """A transport that keeps what it is given, a write at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def close(self) -> None:
        self.closed = True


HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"


def test_the_head_of_an_answer_leaves_with_its_body() -> None:
    async def run() -> None:
        written = Written()
        transport = HeadWithBody(written)
        for _ in range(2):
            transport.write(HEAD)
            transport.write(b"ab")
        await asyncio.sleep(0)
        assert written.writes == [HEAD + b"ab", HEAD + b"ab"]

    asyncio.run(run())


def test_a_head_without_a_body_leaves_in_the_next_round_of_the_loop() -> None:
    async def run() -> None:
        written = Written()
        transport = HeadWithBody(written)
        transport.write(HEAD)
        assert written.writes == []
        await asyncio.sleep(0)
        assert written.writes == [HEAD]
        transport.write(b"ab")
        assert written.writes == [HEAD, b"ab"]

    asyncio.run(run())


def test_closing_sends_a_head_that_waits() -> None:
    async def run() -> None:
        written = Written()
        transport = HeadWithBody(written)
        transport.write(HEAD)
        transport.close()
        await asyncio.sleep(0)
        assert (written.writes, written.closed) == ([HEAD], True)

    asyncio.run(run())


# --- templates at the start ---


def engine_of(*templates: TemplateHealth) -> Engine:
    return cast(Engine, SimpleNamespace(health=lambda: list(templates)))


BROKEN = TemplateHealth("python", False, 0, 0, 0, "no python3")


def test_a_start_without_a_template_is_refused_with_the_reason() -> None:
    with pytest.raises(Refused, match="no python3"):
        tell_templates(engine_of(BROKEN))


@pytest.mark.parametrize("other", [replace(BROKEN, ready=True), replace(BROKEN, dormant=True)])
def test_a_template_that_is_ready_or_made_when_it_is_wanted_is_enough(other: TemplateHealth) -> None:
    tell_templates(engine_of(BROKEN, other))
