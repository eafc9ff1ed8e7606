"""Forms and their files, keys that come in bodies and queries, and sockets for one program: what some dialects need."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandfork.errors import SandforkError
from sandfork.http import forms
from sandfork.model import SessionKey, SessionSpec
from tests.support import form_dialect
from tests.support.asgi import Answered, Client
from tests.support.clock import in_virtual_time, settle
from tests.support.stub_engine import StubEngine, stub_app

KEY = SessionKey("forms", "address:127.0.0.1", "s")
BOUNDARY = "xYzZy"
KEYS = b'["k"]'


def part(name: str, value: bytes, filename: str | None = None) -> bytes:
    disposition = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename is not None else "")
    return f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + value + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def cut(body: bytes, size: int) -> list[bytes]:
    return [body[start : start + size] for start in range(0, len(body), size)]


async def with_session(**settings: Any) -> tuple[StubEngine, Client]:
    engine = StubEngine()
    await engine.sessions.create(KEY, None, SessionSpec())  # type: ignore[arg-type]  # the stub asks nothing of a caller
    return engine, Client(stub_app(engine, dialects=[form_dialect.DIALECT], **settings))


async def send(client: Client, body: bytes, size: int = 1 << 20, path: str = "/forms/upload", **more: Any) -> Answered:
    headers = [("content-type", f"multipart/form-data; boundary={BOUNDARY}")]
    return await client.send("POST", path, cut(body, size) or [b""], headers, **more)


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every file that was made for a form is closed at the end, and its room given back."""
    made: list[Any] = []
    rooms: list[forms.Room] = []
    temporary, room = forms.tempfile.TemporaryFile, forms.Room.__init__

    def make(*args: Any, **kwargs: Any) -> Any:
        made.append(temporary(*args, **kwargs))
        return made[-1]

    def begin(self: forms.Room, size_bytes: int = forms.SPOOLED_BYTES) -> None:
        rooms.append(self)
        room(self, size_bytes)

    monkeypatch.setattr(forms.tempfile, "TemporaryFile", make)
    monkeypatch.setattr(forms.Room, "__init__", begin)
    yield
    assert all(file.closed for file in made)
    assert all(each.left_bytes == forms.SPOOLED_BYTES for each in rooms)


CONTENT = b"\r\n--xYzZ\r\n--\x00\xff" * 50


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize("last", [True, False])
@in_virtual_time
async def test_a_file_of_a_form_is_written_whether_fields_come_before_or_after(size: int, last: bool) -> None:
    engine, client = await with_session()
    file, fields = part("file", CONTENT, "local.bin"), [part("session", b"s"), part("path", "é.bin".encode())]
    answer = await send(client, form(*fields, file) if last else form(file, *fields), size)
    assert (answer.status, answer.body) == (200, str(len(CONTENT)).encode())
    assert engine.sessions.find(KEY).files == {"/sandbox/é.bin": CONTENT}


def test_a_large_file_is_kept_on_disk_and_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms.tempfile, "tempdir", str(tmp_path))
    content = bytes(range(256)) * (forms.IN_MEMORY_BYTES // 100)
    seen: list[int] = []

    async def run() -> None:
        engine, client = await with_session()
        answer = await send(client, form(part("file", content, "f"), part("session", b"s")), 100_000)
        assert answer.status == 200
        assert engine.sessions.find(KEY).files == {"/sandbox/f": content}
        seen.append(len(os.listdir(tmp_path)))

    asyncio.run(run())
    assert seen == [0]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (form(part("session", b"s")), 400, "file: is required"),
        (form(part("file", b"1", "a"), part("file", b"2", "b"), part("session", b"s")), 400, "second file"),
        (form(part("session", b"\xff"), part("file", b"1", "a")), 400, "session: is not valid UTF-8"),
        (form(part("file", b"1", "../a"), part("session", b"s")), 404, "../a"),
        (form(*[part(f"f{n}", b"") for n in range(65)]), 400, "not a valid form"),
        (form(part("session", b"x" * ((1 << 20) + 1))), 413, "larger"),
        (form(part("file", b"1", "a"))[:-10], 400, "not a valid form"),
        (b"", 400, "not a valid form"),
        (b"no form at all", 400, "not a valid form"),
        (b"--xYzZy\r\nContent-Type: text/plain\r\n\r\n1\r\n--xYzZy--\r\n", 400, "not a valid form"),
        (b"--xYzZy\r\nX: " + b"x" * 9000 + b"\r\n\r\n1\r\n--xYzZy--\r\n", 400, "not a valid form"),
    ],
)
@in_virtual_time
async def test_a_form_that_cannot_be_meant_is_refused(body: bytes, status: int, words: str) -> None:
    engine, client = await with_session()
    answer = await send(client, body, 1000)
    assert answer.status == status
    assert words in answer.json["text"]
    assert engine.sessions.find(KEY).files == {}


@pytest.mark.parametrize(
    "content_type", ["application/json", "text/plain", "", "multipart/form-data", "multipart/mixed; boundary=xYzZy"]
)
@in_virtual_time
async def test_what_says_that_it_is_no_form_is_refused(content_type: str) -> None:
    _, client = await with_session()
    body = form(part("file", b"1", "a"), part("session", b"s"))
    answer = await client.send("POST", "/forms/upload", [body], [("content-type", content_type)])
    assert answer.status == 400
    assert answer.json["code"] in ("unsupported_media_type", "invalid_request")


@in_virtual_time
async def test_a_form_larger_than_an_upload_may_be_is_refused_while_it_comes() -> None:
    engine, client = await with_session(max_upload_bytes=5000)
    answer = await send(client, form(part("file", b"x" * 6000, "a"), part("session", b"s")), 1000)
    assert answer.status == 413
    assert engine.sessions.find(KEY).files == {}


def test_when_the_disk_may_not_take_more_a_form_is_refused_for_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "IN_MEMORY_BYTES", 10)

    async def run() -> None:
        room = forms.Room(100)
        first, second = forms.Spool(room), forms.Spool(room)
        await first.write(b"x" * 60)
        with pytest.raises(SandforkError, match="too many uploads"):
            await second.write(b"x" * 60)
        first.close()
        await second.write(b"x" * 60)
        assert b"".join([chunk async for chunk in second.chunks()]) == b"x" * 60
        second.close()
        room.give_back(forms.SPOOLED_BYTES - 100)

    asyncio.run(run())


def test_a_client_that_goes_in_the_midst_of_a_form_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "IN_MEMORY_BYTES", 10)

    async def run() -> None:
        engine, client = await with_session()
        gone, body = asyncio.Event(), form(part("file", b"x" * 1000, "a"))
        gone.set()
        answer = await send(client, body[:-20], 100, gone=gone, unfinished=True)
        assert answer.status == 0
        assert engine.sessions.find(KEY).files == {}

    asyncio.run(run())


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"session=s&path=a%20b", "application/x-www-form-urlencoded"),
        (b"session=s&path=a+b", "application/x-www-form-urlencoded; charset=utf-8"),
        (form(part("session", b"s"), part("path", b"a b")), f"multipart/form-data; boundary={BOUNDARY}"),
        (b'{"session": "s", "path": "a b"}', "application/json"),
    ],
)
@in_virtual_time
async def test_a_form_or_json_may_ask_for_the_same(body: bytes, content_type: str) -> None:
    engine, client = await with_session()
    engine.sessions.find(KEY).files["/sandbox/a b"] = b"content"
    answer = await client.send("POST", "/forms/download", [body], [("content-type", content_type)])
    assert (answer.status, answer.body) == (200, b"content")


@pytest.mark.parametrize("body", [b"session=%ff", b"\xff", b"&".join(b"a=1" for _ in range(65))])
@in_virtual_time
async def test_an_urlencoded_form_that_cannot_be_meant_is_refused(body: bytes) -> None:
    _, client = await with_session()
    headers = [("content-type", "application/x-www-form-urlencoded")]
    assert (await client.send("POST", "/forms/download", [body], headers)).status == 400


BODY = b'{"api_key": "k"}'


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/forms/exec", BODY, 200),
        ("POST", "/forms/exec?api_key=k", b"{}", 200),
        ("POST", "/forms/exec", b'{"api_key": "wrong"}', 401),
        ("POST", "/forms/exec", b"{}", 401),
        ("POST", "/forms/exec", b"", 401),
        ("POST", "/forms/exec?api_key=wrong", BODY, 401),
        ("GET", "/forms/list?api_key=k", b"", 200),
        ("GET", "/forms/list", b"", 401),
        ("POST", "/v1/exec?api_key=k", b'{"code": "x", "api_key": "k"}', 401),
    ],
)
@in_virtual_time
async def test_a_key_in_the_body_or_the_query_counts_where_its_dialect_says(
    method: str, path: str, body: bytes, status: int
) -> None:
    client = Client(stub_app(dialects=[form_dialect.DIALECT], keys=KEYS))
    assert (await client.send(method, path, [body])).status == status


@pytest.mark.parametrize("header", [{"x-api-key": "wrong"}, {"authorization": "Bearer wrong"}])
@in_virtual_time
async def test_a_key_in_a_header_is_the_one_that_counts(header: dict[str, str]) -> None:
    client = Client(stub_app(dialects=[form_dialect.DIALECT], keys=KEYS), header)
    assert (await client.send("POST", "/forms/exec", [BODY])).status == 401


@in_virtual_time
async def test_little_is_read_for_a_caller_of_whom_nothing_is_known() -> None:
    client = Client(stub_app(dialects=[form_dialect.DIALECT], keys=KEYS))
    body = json.dumps({"api_key": "k", "more": "x" * (256 << 10)}).encode()
    assert (await client.send("POST", "/forms/exec", [body])).status == 401
    form_body = form(part("file", b"1", "a"), part("session", b"s"), part("api_key", b"k"))
    assert (await send(client, form_body)).status == 401


@pytest.mark.parametrize(("query", "accepted"), [("?api_key=k", True), ("?api_key=wrong", False), ("", False)])
@in_virtual_time
async def test_a_websocket_takes_the_key_of_its_query(query: str, accepted: bool) -> None:
    socket = Client(stub_app(dialects=[form_dialect.DIALECT], keys=KEYS)).connect(f"/forms/once{query}")
    await settle()
    assert socket.accepted is accepted
    assert accepted or socket.refused.status == 401
    await socket.close()


@in_virtual_time
async def test_a_websocket_for_one_program_is_closed_after_it() -> None:
    socket = Client(stub_app(dialects=[form_dialect.DIALECT])).connect("/forms/once")
    socket.tell({"type": "start", "code": "x"})
    assert (await socket.hear_until("result"))[-1]["type"] == "result"
    await socket.task
    assert socket.code == 1000


@in_virtual_time
async def test_a_message_that_is_none_is_told_and_ends_the_connection_where_its_dialect_says() -> None:
    socket = Client(stub_app(dialects=[form_dialect.DIALECT])).connect("/forms/once")
    socket.tell("{")
    assert (await socket.hear())["type"] == "error"
    await socket.task
    assert socket.code == 1003
