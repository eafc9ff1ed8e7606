"""The wire between server, warden and sandboxes: whatever bytes come, frames or a FrameError, and nothing else."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandfork.errors import FileNotInSandbox, GuestLost, TierError
from sandfork.linux.cgroup import Figures
from sandfork.model import Display, Limits, Outcome, Step, Stream
from sandfork.tiers.process import messages as m
from sandfork.tiers.process.agent import AgentClient, inside_path
from sandfork.tiers.process.run import Means
from sandfork.tiers.process.sandbox import ProcessSandbox
from sandfork.tiers.process.streams import Streams

MOST = 64
Frame = tuple[int, bytes]
FRAMES = st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=MOST)), max_size=12)
TEXT = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=40)


def pieces(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    """Cut `data` at places that may lie anywhere, and twice."""
    last = 0
    for at in sorted(cut % (len(data) + 1) for cut in cuts):
        yield data[last:at]
        last = at
    yield data[last:]


def feed(reader: m.FrameReader, parts: Iterator[bytes]) -> list[Frame]:
    return [frame for part in parts for frame in reader.feed(part)]


@given(FRAMES, st.lists(st.integers(0), max_size=20))
def test_frames_come_out_as_they_went_in_however_they_are_cut(frames: list[Frame], cuts: list[int]) -> None:
    data = b"".join(m.frame(kind, body) for kind, body in frames)
    assert feed(m.FrameReader(MOST), pieces(data, cuts)) == frames


@given(FRAMES)
def test_frames_come_out_a_byte_at_a_time(frames: list[Frame]) -> None:
    data = b"".join(m.frame(kind, body) for kind, body in frames)
    assert feed(m.FrameReader(MOST), (data[i : i + 1] for i in range(len(data)))) == frames


@given(st.binary(max_size=400), st.lists(st.integers(0), max_size=20))
def test_garbage_is_frames_or_a_frame_error_and_keeps_little(garbage: bytes, cuts: list[int]) -> None:
    reader, got = m.FrameReader(MOST), 0
    try:
        for part in pieces(garbage, cuts):
            for _, body in reader.feed(part):
                assert len(body) <= MOST
                got += m.FRAME.size + len(body)
    except m.FrameError:
        return
    assert got <= len(garbage)
    assert len(reader._buffer) < m.FRAME.size + MOST


@given(FRAMES, st.integers(MOST + 1, 2**32 - 1), st.integers(0, 255))
def test_a_frame_too_long_is_refused_as_soon_as_it_is_announced(frames: list[Frame], size: int, kind: int) -> None:
    reader = m.FrameReader(MOST)
    data = b"".join(m.frame(k, body) for k, body in frames)
    assert list(reader.feed(data)) == frames
    with pytest.raises(m.FrameError):
        list(reader.feed(m.FRAME.pack(kind, size)))


def fields(data: bytes) -> list[tuple[int, bytes]]:
    """Read fields the plain way: the reference for what packs them."""
    found, at = [], 0
    while at < len(data):
        tag, size = struct.unpack_from("=B3xI", data, at)
        found.append((tag, data[at + 8 : at + 8 + size]))
        at += 8 + size
    assert at == len(data)
    return found


@given(st.lists(TEXT, max_size=8), st.lists(TEXT, max_size=8), st.integers(0, 2**64 - 1), st.binary(max_size=99))
def test_fields_are_packed_with_their_ends(argv: list[str], env: list[str], number: int, code: bytes) -> None:
    data = m.program_fields(argv, env) + m.number(b"n", number) + m.field(b"c", code)
    texts = [(ord("a"), a.encode() + b"\0") for a in argv] + [(ord("e"), e.encode() + b"\0") for e in env]
    assert fields(data) == [*texts, (ord("n"), struct.pack("=Q", number)), (ord("c"), code)]


@given(st.sampled_from([m.PUT, m.GET, m.LIST, m.DELETE]), TEXT, st.integers(0, 2**48 - 1), st.binary(max_size=99))
def test_an_agent_request_holds_path_number_and_content(kind: int, path: str, number: int, content: bytes) -> None:
    head, body = (data := m.agent_request(kind, path, number, content))[:8], data[8:]
    assert struct.unpack("=B3xI", head) == (kind, len(body))
    (packed,) = struct.unpack_from("=Q", body)
    size = packed >> 48
    assert (packed & (1 << 48) - 1, body[8 : 8 + size], body[8 + size :]) == (number, path.encode(), content)


@given(st.integers(4097, 9000))
def test_a_path_longer_than_the_kernel_takes_is_refused(size: int) -> None:
    with pytest.raises(OSError, match="too long"):
        m.agent_request(m.GET, "p" * size, 0)


@given(
    st.text(max_size=60) | st.lists(st.sampled_from(["..", ".", "", "a", "tmp", "sandbox", "dev", "\0"])).map("/".join)
)
def test_a_path_of_a_sandbox_stays_below_its_work_directory_or_is_refused(path: str) -> None:
    try:
        inside = inside_path(path)
    except FileNotInSandbox:
        return
    assert not inside.startswith("/")
    assert not {"", ".", ".."} & set(inside.split("/"))
    assert "\0" not in inside


@given(st.binary(min_size=m.EVENT.size, max_size=m.EVENT.size))
def test_every_event_of_the_right_size_is_read(data: bytes) -> None:
    event = m.event(data)
    assert m.EVENT.pack(*(getattr(event, name) for name in event.__slots__)) == data
    assert m.step_name(event.step)


@given(st.integers(0, 70_000))
def test_a_request_that_would_not_fit_one_message_is_refused(size: int) -> None:
    payload = bytes(size)
    if m.REQUEST.size + size > m.MESSAGE_MAX:
        with pytest.raises(ValueError, match="does not fit"):
            m.request(m.Request.ROOT, 0, payload=payload)
    else:
        assert len(m.request(m.Request.ROOT, 0, payload=payload)) == m.REQUEST.size + size


# --- a sandbox that says anything at all ---


class StillMeter:
    """A meter of a sandbox that uses nothing."""

    def baseline(self) -> None:
        """Count from now on."""

    def cpu_ns(self, since: object = None) -> int:
        return 0

    def events(self, since: object = None) -> tuple[int, int]:
        return 0, 0

    def figures(self, since: object = None) -> Figures:
        return Figures(0, 0, 0, 0, 0)


class StillSlot:
    """A slot without a warden: what the sandbox asks of it is done at once."""

    def __init__(self) -> None:
        self.meter = StillMeter()
        self.tasks = self
        self.cores = 1
        self.means = Means()
        self.work_dir = "/sandbox"
        self.closes = 0

    def figures(self, reaped: object, since: object = None) -> Figures:
        return self.meter.figures()

    def spawn(self, work: Any) -> asyncio.Task[Any]:
        return asyncio.get_running_loop().create_task(work)

    async def apply(self, limits: Limits) -> None:
        """All limits hold already."""

    def close(self) -> None:
        self.closes += 1

    async def closed(self) -> None:
        """Nothing has to die."""


class Nobody:
    """A sink that takes everything."""

    def output(self, stream: Stream, data: bytes) -> bool:
        return True

    def display(self, shown: Display) -> None:
        """Take it."""


def honest_end(code: int, ready: int, done: int) -> bytes:
    return m.frame(m.ENDED, m.END.pack(code, 0, ready, done))


WORDS = st.one_of(
    st.binary(max_size=40),
    st.tuples(st.sampled_from(b"!RSEXD?"), st.binary(max_size=30)).map(lambda f: m.frame(*f)),
    st.builds(honest_end, st.integers(-(2**31), 2**31 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)),
    st.just(m.frame(m.READY)),
    st.integers(0, 2**64 - 1).map(lambda ns: m.frame(m.STARTED, m.NUMBER.pack(ns))),
    st.just(m.frame(m.FAILED, m.FAIL.pack(21, 2))),
)


async def talk(words: list[bytes], ready: bool) -> Any:
    """Say `words` to a sandbox, before or after it was given a program, then hang up and die."""
    ctl, child = socket.socketpair()
    agent, cell = socket.socketpair()
    pipes = [make_pipe() for _ in range(3)]
    for sock in (ctl, agent):
        sock.setblocking(False)
    slot = StillSlot()
    streams = Streams(pipes[0][1], pipes[1][0], pipes[2][0])
    sandbox = ProcessSandbox(cast(Any, slot), ctl, streams, AgentClient(agent), b"")
    died = m.WardenEvent(m.Event.EXIT, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0)
    try:
        async with asyncio.timeout(20):
            if ready:
                child.sendall(m.frame(m.READY))
                await sandbox.parked()
                task = asyncio.ensure_future(sandbox.exec(Step(("x",)), Limits(), Nobody()))
                await asyncio.sleep(0)
            else:
                task = asyncio.ensure_future(cast(Any, sandbox.parked()))
            child.sendall(b"".join(words))
            child.close()
            cell.close()
            for _ in range(4):
                await asyncio.sleep(0)
            sandbox.exit_event(died)
            (result,) = await asyncio.gather(task, return_exceptions=True)
    finally:
        await sandbox.close()
        child.close()
        cell.close()
        for fd in (pipes[0][0], pipes[1][1], pipes[2][1]):
            os.close(fd)
    return result


def make_pipe() -> tuple[int, int]:
    """Return a pipe whose ends do not block."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    return reading, writing


@settings(max_examples=150)
@given(st.lists(WORDS, max_size=6))
def test_a_running_program_that_says_anything_has_exactly_one_end(words: list[bytes]) -> None:
    end = asyncio.run(talk(words, ready=True))
    assert not isinstance(end, BaseException), repr(end)
    assert end.outcome in (Outcome.EXITED, Outcome.SIGNALLED, Outcome.POLICY_VIOLATION)
    assert (end.exit_code is None) != (end.signal is None)
    assert 0 <= (end.exit_code or 0) <= 255
    assert 0 < end.ready_ns <= end.done_ns


@settings(max_examples=150)
@given(st.lists(WORDS, max_size=6))
def test_a_fork_that_says_anything_is_parked_or_fails_as_a_fork(words: list[bytes]) -> None:
    result = asyncio.run(talk(words, ready=False))
    assert result is None or (isinstance(result, TierError) and not isinstance(result, GuestLost)), repr(result)
