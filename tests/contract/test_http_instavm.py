"""InstaVM's API through the application: under its prefix, at root, and alone, over an engine that runs nothing."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import Sequence
from typing import Any

import pytest

from sandfork.access import AccessSettings
from sandfork.errors import FileNotInSandbox, Overloaded, SessionNotFound, UnknownLanguage
from sandfork.http.log import ExecutionLog
from sandfork.model import Display, Limits, Outcome, SessionKey, Snippet
from tests.support.asgi import Answered, Client
from tests.support.clock import in_virtual_time
from tests.support.dialects import exact_places, places, shape
from tests.support.stub_engine import StubEngine, by_code, elapse, ended, stub_app

KEYS = b'["key-1", "key-2"]'
OWNER = "address:127.0.0.1"
EXAMPLE = {"command": "print(1 + 1)"}
REPLY = {
    "stdout": "2\n",
    "stderr": "",
    "exit_code": 0,
    "execution_time": 0.0072,
    "cpu_time": 0.003,
    "session_id": "",
    "state_lost": False,
}
BOUNDARY = "0123456789"
everywhere = places("instavm")
exactly = exact_places("instavm")


def multipart(fields: dict[str, str], content: bytes, filename: str = "a.bin", file_first: bool = False) -> bytes:
    """Return a form as the requests library writes it: fields, then the file."""
    parts = [
        f'Content-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + value.encode()
        for name, value in fields.items()
    ]
    head = f'Content-Disposition: form-data; name="file"; filename="{filename}"\r\n\r\n'.encode()
    parts.insert(0 if file_first else len(parts), head + content)
    line = f"--{BOUNDARY}\r\n".encode()
    return b"".join(line + part + b"\r\n" for part in parts) + f"--{BOUNDARY}--\r\n".encode()


async def upload(client: Client, base: str, form: bytes) -> Answered:
    return await client.send(
        "POST", f"{base}/upload", [form], [("content-type", f"multipart/form-data; boundary={BOUNDARY}")]
    )


async def download(client: Client, base: str, form: str) -> Answered:
    kind = [("content-type", "application/x-www-form-urlencoded")]
    return await client.send("POST", f"{base}/download", [form.encode()], kind)


async def started(client: Client, base: str = "/instavm", **body: Any) -> str:
    """Make a session and return its id."""
    answer = await client.post(f"{base}/v1/sessions/session", body)
    assert answer.status == 200, answer.body
    name: str = answer.json["session_id"]
    return name


@everywhere
@in_virtual_time
async def test_a_first_execution_makes_a_session_and_the_next_one_is_in_it(base: str, dialect: str | None) -> None:
    engine = StubEngine()
    client = Client(stub_app(engine, dialect=dialect))
    first = (await client.post(f"{base}/execute", EXAMPLE)).json
    assert shape(first) == shape(REPLY)
    assert first == {**REPLY, "session_id": first["session_id"]}
    other = (await client.post(f"{base}/execute", EXAMPLE)).json["session_id"]
    assert other not in ("", first["session_id"])
    again = await client.post(f"{base}/execute", {"code": "x", "session_id": first["session_id"], "language": "bash"})
    assert again.json["session_id"] == first["session_id"]
    key = SessionKey("instavm", OWNER, first["session_id"])
    assert engine.sessions.state(key).executions == 2
    assert [request.program for request in engine.requests] == [
        Snippet("python", "print(1 + 1)"),
        Snippet("python", "print(1 + 1)"),
        Snippet("bash", "x"),
    ]


@exactly
@in_virtual_time
async def test_addresses_joined_with_a_slash_too_many_work(base: str, dialect: str | None) -> None:
    client = Client(stub_app(dialect=dialect))
    assert (await client.post(f"{base}//execute", EXAMPLE)).status == 200
    name = await started(client, f"{base}/")
    assert (await client.get(f"{base}//v1/sessions/status/{name}")).json["vm_status"] == "active"


@in_virtual_time
async def test_at_root_a_body_is_known_by_its_command_or_code() -> None:
    client = Client(stub_app())
    for body in (EXAMPLE, {"code": "x", "api_key": None}, {"command": None, "code": "x"}):
        assert set((await client.post("/execute", body)).json) == set(REPLY)
    wrong = await client.post("/execute", {"command": None})
    assert (wrong.status, wrong.json["detail"][0]["loc"]) == (422, ["body", "command"])
    nobodys = await client.post("/execute", {"language": "python"})
    assert (nobodys.status, set(nobodys.json)) == (400, {"error", "details", "detail"})


@everywhere
@in_virtual_time
async def test_what_limits_do_and_values_are_shown(base: str, dialect: str | None) -> None:
    results = {
        "slow": ended(
            outcome=Outcome.TIMED_OUT, exit_code=None, signal=2, stdout=b"so far\n", limits=Limits(wall_s=57)
        ),
        "value": ended(stdout=b"", displays=(Display("result", {"text/plain": "42"}),)),
        "lost": ended(outcome=Outcome.OUT_OF_MEMORY, exit_code=None, signal=9, stdout=b"", state_lost=True),
    }
    client = Client(stub_app(StubEngine(by_code(results)), dialect=dialect))
    slow, value, lost = [(await client.post(f"{base}/execute", {"command": code})).json for code in results]
    assert (slow["stdout"], slow["stderr"], slow["exit_code"]) == ("so far\n", "Execution timed out after 57s", 124)
    assert (value["stdout"], value["exit_code"]) == ("42\n", 0)
    assert (lost["state_lost"], lost["exit_code"]) == (True, 137)


@exactly
@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({}, ["body", "command"]),
        ({"command": "x", "timeout": 0}, ["body", "timeout"]),
        ({"command": "x", "timeout": 601}, ["body", "timeout"]),
        ({"command": "x", "timeout": "5"}, ["body", "timeout"]),
        ([], ["body"]),
        (b"{", ["body"]),
        (b"", ["body"]),
    ],
)
@in_virtual_time
async def test_a_wrong_body_is_422_and_names_the_place(
    base: str, dialect: str | None, body: Any, place: list[str]
) -> None:
    engine = StubEngine()
    for path in ("/execute", "/execute_async"):
        answer = await Client(stub_app(engine, dialect=dialect)).post(base + path, body)
        assert answer.status == 422
        (problem,) = answer.json["detail"]
        assert problem["loc"] == place
        assert set(problem) == {"loc", "msg", "type"}
    assert engine.requests == []


@exactly
@in_virtual_time
async def test_an_unknown_language_is_422(base: str, dialect: str | None) -> None:
    engine = StubEngine(by_code({"x": UnknownLanguage("cobol")}))
    answer = await Client(stub_app(engine, dialect=dialect)).post(f"{base}/execute", {"command": "x"})
    assert (answer.status, answer.json["detail"][0]["loc"]) == (422, ["body", "language"])


@exactly
@in_virtual_time
async def test_a_server_that_is_full_says_when_to_come_again(base: str, dialect: str | None) -> None:
    engine = StubEngine(by_code({"x": Overloaded("the queue is full", retry_after_s=2.0)}))
    answer = await Client(stub_app(engine, dialect=dialect)).post(f"{base}/execute", {"command": "x"})
    assert (answer.status, answer.json) == (503, {"detail": "the queue is full"})
    assert answer.headers["retry-after"] == "2"


@everywhere
@pytest.mark.parametrize("way", ["x-api-key", "bearer", "body"])
@in_virtual_time
async def test_a_key_is_taken_from_any_of_its_three_places(base: str, dialect: str | None, way: str) -> None:
    client = Client(stub_app(keys=KEYS, dialect=dialect))
    given: dict[str, dict[str, str]] = {
        "x-api-key": {"x_api_key": "key-1"},
        "bearer": {"authorization": "Bearer key-1"},
    }
    inside = {"api_key": "key-1"} if way == "body" else {}
    for path, body in (("/execute", EXAMPLE), ("/v1/sessions/session", {"vm_lifetime_seconds": 60})):
        answer = await client.post(base + path, {**body, **inside}, **given.get(way, {}))
        assert answer.status == 200, answer.body
        assert answer.json["session_id"]


@everywhere
@in_virtual_time
async def test_a_wrong_or_missing_key_is_401_wherever_it_is(base: str, dialect: str | None) -> None:
    engine = StubEngine()
    client = Client(stub_app(engine, keys=KEYS, dialect=dialect))
    for path, body in (("/execute", EXAMPLE), ("/v1/sessions/session", {}), ("/kill", {"session_id": "a"})):
        missing = await client.post(base + path, body)
        assert (missing.status, missing.json["detail"]) == (401, "Not authenticated")
        for answer in (
            await client.post(base + path, {**body, "api_key": "key-3"}),
            await client.post(base + path, body, x_api_key="key-3"),
            await client.post(base + path, {**body, "api_key": "key-1"}, x_api_key="key-3"),
        ):
            assert (answer.status, answer.json["detail"]) == (401, "Invalid API key")
    assert (await client.get(f"{base}/v1/sessions/sandboxes?api_key=key-1")).status == 401
    assert (await client.get(f"{base}/v1/sessions/sandboxes", **{"x-api-key": "key-1"})).json == []
    assert engine.requests == []


@exactly
@in_virtual_time
async def test_a_rate_that_is_used_up_is_429_with_a_sentence(base: str, dialect: str | None) -> None:
    access = AccessSettings(rate_per_s=1.0)
    client = Client(stub_app(keys=KEYS, access=access, dialect=dialect), {"x-api-key": "key-1"})
    assert (await client.post(f"{base}/execute", EXAMPLE)).status == 200
    for path in ("/execute", "/execute_async"):
        answer = await client.post(base + path, EXAMPLE)
        assert (answer.status, answer.json) == (429, {"detail": "Rate limit exceeded (1 req/s)"})
        assert answer.headers["retry-after"] == "1"
    assert (await client.get(f"{base}/v1/sessions/sandboxes")).status == 200


@everywhere
@in_virtual_time
async def test_a_session_is_made_told_found_and_killed(base: str, dialect: str | None) -> None:
    client = Client(stub_app(StubEngine(now=lambda: 1000.0), dialect=dialect))
    body = {"vm_lifetime_seconds": 60, "memory_mb": 256, "metadata": {"team": "a"}, "env": {"A": 1}}
    name = await started(client, base, **body)
    other = await started(client, base)
    told = (await client.get(f"{base}/v1/sessions/session/{name}")).json
    assert (told["session_id"], told["vm_id"], told["vm_status"]) == (name, name, "active")
    assert (told["vm_lifetime_seconds"], told["memory_mb"], told["metadata"]) == (60.0, 256, {"team": "a"})
    status = (await client.get(f"{base}/v1/sessions/status/{name}")).json
    assert (status["vm_status"], status["uptime_seconds"], status["expires_in_seconds"]) == ("active", 0.0, 60.0)
    usage = (await client.get(f"{base}/v1/sessions/usage/{name}")).json
    assert (usage["session_id"], usage["cpu_time"], usage["memory_peak_mb"]) == (name, 0.75, 9.0)
    listed = (await client.get(f"{base}/v1/sessions/sandboxes")).json
    assert [each["session_id"] for each in listed] == [name, other]
    found = await client.get(f"{base}/v1/sessions/sandboxes?metadata=%7B%22team%22%3A+%22a%22%7D&limit=5")
    assert found.json == [told]
    assert (await client.post(f"{base}/kill", {"session_id": name})).json["status"] == "killed"
    for path in ("session", "status", "usage"):
        gone = await client.get(f"{base}/v1/sessions/{path}/{name}")
        assert (gone.status, gone.json) == (404, {"detail": f"no session {name}"})
    assert (await client.post(f"{base}/kill", {"session_id": name})).status == 404
    assert (await client.post(f"{base}/kill", {"session_id": "no id"})).status == 400


@everywhere
@in_virtual_time
async def test_a_machine_is_a_session_by_another_name(base: str, dialect: str | None) -> None:
    client = Client(stub_app(dialect=dialect))
    made = (await client.post(f"{base}/v1/vms?wait=true", {"vm_lifetime_seconds": 60})).json
    assert (await client.get(f"{base}/v1/vms")).json == (await client.get(f"{base}/v1/vms/")).json == [made]
    assert (await client.get(f"{base}/v1/vms/{made['vm_id']}")).json == made
    ended_ = await client.send("DELETE", f"{base}/v1/vms/{made['vm_id']}")
    assert ended_.json == {"session_id": made["vm_id"], "vm_id": made["vm_id"], "status": "killed"}
    assert (await client.get(f"{base}/v1/vms/{made['vm_id']}")).status == 404
    assert (await client.post(f"{base}/v1/vms", {"snapshot_id": "s"})).status == 501


@exactly
@in_virtual_time
async def test_a_session_past_its_time_is_gone_and_the_next_execution_makes_it_anew(
    base: str, dialect: str | None
) -> None:
    now = [1000.0]
    engine = StubEngine(now=lambda: now[0])
    client = Client(stub_app(engine, dialect=dialect))
    name = await started(client, base, vm_lifetime_seconds=20)
    now[0] += 19.0
    assert (await client.get(f"{base}/v1/sessions/status/{name}")).json["expires_in_seconds"] == 1.0
    now[0] += 1.0
    assert (await client.get(f"{base}/v1/sessions/status/{name}")).status == 404
    again = await client.post(f"{base}/execute", {"command": "x", "session_id": name})
    assert (again.status, again.json["session_id"]) == (200, name)
    assert engine.sessions.state(SessionKey("instavm", OWNER, name)).expires_s == 1320.0


@exactly
@in_virtual_time
async def test_a_session_of_another_key_is_not_there(base: str, dialect: str | None) -> None:
    app = stub_app(keys=KEYS, dialect=dialect)
    mine, other = Client(app, {"x-api-key": "key-1"}), Client(app, {"x-api-key": "key-2"})
    name = await started(mine, base)
    assert (await upload(mine, base, multipart({"session_id": name, "remote_path": "a"}, b"1"))).status == 200
    assert (await other.get(f"{base}/v1/sessions/sandboxes")).json == []
    answers = [
        await other.get(f"{base}/v1/sessions/session/{name}"),
        await other.post(f"{base}/kill", {"session_id": name}),
        await upload(other, base, multipart({"session_id": name, "remote_path": "b"}, b"2")),
        await download(other, base, f"filename=a&session_id={name}"),
        await other.get(f"{base}/v1/egress/session/{name}"),
        await other.get(f"{base}/v1/sessions/{name}/pty/sessions"),
        await other.post(f"{base}/v1/vms/{name}/pty/sessions", {}),
    ]
    assert {(answer.status, answer.body) for answer in answers} == {(404, f'{{"detail":"no session {name}"}}'.encode())}
    assert (await mine.get(f"{base}/v1/sessions/session/{name}")).status == 200


@everywhere
@pytest.mark.parametrize("file_first", [False, True])
@in_virtual_time
async def test_a_binary_file_goes_up_and_comes_down_unchanged(base: str, dialect: str | None, file_first: bool) -> None:
    client = Client(stub_app(dialect=dialect))
    name, content = await started(client, base), bytes(range(256)) * 3
    fields = {"remote_path": "d/a.bin", "session_id": name, "recursive": "false"}
    up = await upload(client, base, multipart(fields, content, file_first=file_first))
    assert up.json == {"session_id": name, "remote_path": "d/a.bin", "size": 768, "status": "success"}
    down = await download(client, base, f"filename=d%2Fa.bin&session_id={name}")
    assert base64.b64decode(down.json["content"]) == content
    assert (down.json["filename"], down.json["size"]) == ("d/a.bin", 768)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 199_999, 200_000, 200_001])
@in_virtual_time
async def test_a_download_is_told_with_its_length_and_sent_as_it_is_read(size: int) -> None:
    engine = StubEngine()
    client = Client(stub_app(engine))
    name, content = await started(client), random.Random(size).randbytes(size)
    await upload(client, "", multipart({"remote_path": 'a"b', "session_id": name}, content))
    answer = await download(client, "", f"filename=a%22b&session_id={name}")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["content-length"] == str(len(answer.body))
    reply = answer.json
    assert base64.b64decode(reply.pop("content")) == content
    assert reply == {"filename": 'a"b', "size": size}
    assert engine.sessions.reading == 0


@exactly
@in_virtual_time
async def test_a_file_above_what_is_moved_out_is_413(base: str, dialect: str | None) -> None:
    engine = StubEngine()
    engine.sessions.most_bytes = 3
    client = Client(stub_app(engine, dialect=dialect))
    name = await started(client, base)
    await upload(client, base, multipart({"remote_path": "a", "session_id": name}, b"four"))
    refused = await download(client, base, f"filename=a&session_id={name}")
    assert (refused.status, refused.json) == (413, {"detail": "a: is larger than 3 bytes, the most this server moves"})


@exactly
@in_virtual_time
async def test_files_that_cannot_be_are_refused(base: str, dialect: str | None) -> None:
    client = Client(stub_app(dialect=dialect))
    name = await started(client, base)
    missing = await download(client, base, f"filename=none&session_id={name}")
    assert (missing.status, type(missing.json["detail"])) == (404, str)
    for path in ("/etc/passwd", "../../etc/passwd"):
        assert (await upload(client, base, multipart({"session_id": name, "remote_path": path}, b""))).status == 404
    nameless = await upload(client, base, multipart({"session_id": name}, b""))
    assert (nameless.status, nameless.json["detail"][0]["loc"]) == (422, ["body", "remote_path"])
    as_json = await client.post(f"{base}/download", {"filename": "a", "session_id": name})
    assert (as_json.status, type(as_json.json["detail"])) == (415, str)


@in_virtual_time
async def test_an_upload_above_the_maximum_is_413() -> None:
    client = Client(stub_app(max_upload_bytes=1000))
    name = await started(client)
    form = {"session_id": name, "remote_path": "a"}
    assert (await upload(client, "/instavm", multipart(form, b"x" * 500))).status == 200
    refused = await upload(client, "/instavm", multipart(form, b"x" * 1000))
    assert (refused.status, type(refused.json["detail"])) == (413, str)


@everywhere
@in_virtual_time
async def test_a_program_goes_on_without_its_client_and_is_told_when_asked(base: str, dialect: str | None) -> None:
    go = asyncio.Event()

    async def wait() -> Any:
        await go.wait()
        return ended(stderr=b"e")

    engine = StubEngine(lambda request: wait(), now=lambda: 1_700_000_000.0)
    client = Client(stub_app(engine, dialect=dialect))
    begun = (await client.post(f"{base}/execute_async", {"command": "x", "timeout": 30})).json
    assert set(begun) == {"task_id", "session_id", "status", "created_at"}
    path = f"{base}/v1/executions/{begun['task_id']}"
    assert not (await client.get(path)).json["is_complete"]
    go.set()
    await elapse(1.0)
    told = (await client.get(path)).json
    assert told["is_complete"]
    assert (told["serialized_stdout"], told["serialized_stderr"], told["exit_code"]) == ("2\n", "e", 0)
    assert (told["created_at"], told["cpu_time"]) == ("2023-11-14T22:13:20Z", 0.003)
    assert engine.requests[0].limits.wall_s == 30.0
    assert (await client.get(f"{base}/v1/executions/none")).status == 404
    await engine.close()


@exactly
@in_virtual_time
async def test_a_task_is_its_callers_own(base: str, dialect: str | None) -> None:
    engine = StubEngine()
    app = stub_app(engine, keys=KEYS, dialect=dialect)
    mine, other = Client(app, {"x-api-key": "key-1"}), Client(app, {"x-api-key": "key-2"})
    task = (await mine.post(f"{base}/execute_async", EXAMPLE)).json["task_id"]
    assert (await mine.get(f"{base}/v1/executions/{task}")).status == 200
    assert (await other.get(f"{base}/v1/executions/{task}")).status == 404
    await engine.close()


@everywhere
@pytest.mark.parametrize("kind", ["session", "vm"])
@in_virtual_time
async def test_nothing_is_what_a_session_may_reach(base: str, dialect: str | None, kind: str) -> None:
    client = Client(stub_app(dialect=dialect))
    path = f"{base}/v1/egress/{kind}/{await started(client, base)}"
    policy = (await client.get(path)).json
    assert not any(policy[name] for name in policy if name.startswith("allow"))
    nothing = {"allow_public_repos": False, "allow_http": False, "allow_https": False, "allowed_domains": []}
    assert (await client.post(path, nothing)).json == policy
    refused = await client.post(path, {**nothing, "allow_https": True})
    assert (refused.status, type(refused.json["detail"])) == (501, str)
    assert (await client.get(path)).json == policy
    assert (await client.get(f"{base}/v1/egress/{kind}/none")).status == 404


@everywhere
@pytest.mark.parametrize("kind", ["sessions", "vms"])
@in_virtual_time
async def test_a_terminal_is_opened_told_resized_and_closed(base: str, dialect: str | None, kind: str) -> None:
    client = Client(stub_app(dialect=dialect))
    path = f"{base}/v1/{kind}/{await started(client, base)}/pty/sessions"
    opened = (await client.post(path, {"cols": 100, "rows": 30, "command": "ls && top", "id": "p1"})).json
    assert (opened["session_id"], opened["cols"], opened["alive"]) == ("p1", 100, True)
    assert opened["command"] == "/bin/bash -lc 'ls && top'"
    assert (await client.get(path)).json == {"sessions": [opened]}
    assert (await client.get(f"{path}/p1")).json == opened
    assert (await client.post(f"{path}/p1/resize", {"cols": 80, "rows": 24})).json["cols"] == 80
    assert (await client.send("DELETE", f"{path}/p1")).json == {"session_id": "p1", "status": "closed"}
    assert (await client.get(f"{path}/p1")).status == 404


class Socket:
    """A client of a WebSocket: what it sends, and what it was sent."""

    def __init__(self, messages: Sequence[str | bytes]) -> None:
        self._waiting = [{"type": "websocket.connect"}]
        self._waiting += [
            {"type": "websocket.receive", "bytes" if isinstance(each, bytes) else "text": each} for each in messages
        ]
        self.accepted = False
        self.got: list[str | bytes] = []
        self.closed: int | None = None
        self.status: int | None = None

    async def connect(self, app: Any, path: str) -> Socket:
        scope = {
            "type": "websocket",
            "path": path.partition("?")[0],
            "query_string": path.partition("?")[2].encode(),
            "headers": [(b"host", b"127.0.0.1:8080")],
            "client": ("127.0.0.1", 50000),
            "extensions": {"websocket.http.response": {}},
        }
        await app(scope, self._receive, self._send)
        return self

    async def _receive(self) -> dict[str, Any]:
        if self._waiting:
            return self._waiting.pop(0)
        return await asyncio.get_running_loop().create_future()

    async def _send(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "websocket.accept":
                self.accepted = True
            case "websocket.send":
                self.got.append(message["bytes"] if message.get("bytes") is not None else message["text"])
            case "websocket.close":
                self.closed = message["code"]
            case "websocket.http.response.start":
                self.status = message["status"]


@everywhere
@pytest.mark.parametrize("kind", ["sessions", "vms"])
@in_virtual_time
async def test_what_is_typed_is_shown_and_the_end_is_told(base: str, dialect: str | None, kind: str) -> None:
    engine = StubEngine()
    app = stub_app(engine, keys=KEYS, dialect=dialect)
    client = Client(app, {"x-api-key": "key-1"})
    name = await started(client, base)
    terminal = (await client.post(f"{base}/v1/{kind}/{name}/pty/sessions", {})).json["session_id"]
    path = f"{base}/v1/{kind}/{name}/pty/{terminal}/connect"
    for query in ("", "?api_key=key-3", "?api_key=key-2"):
        refused = await Socket([]).connect(app, path + query)
        assert (refused.accepted, refused.status) == (False, 404 if "key-2" in query else 401)
    talk = Socket([b"ls\n", '{"type": "resize", "cols": 99, "rows": 33}', "no control", b"exit\n"])
    await talk.connect(app, f"{path}?api_key=key-1")
    assert talk.accepted
    assert b"".join(each for each in talk.got if isinstance(each, bytes)) == b"ls\nexit\n"
    assert json.loads(talk.got[-1]) == {"type": "exit", "exit_code": 0}
    assert talk.closed == 1000
    told = (await client.get(f"{base}/v1/{kind}/{name}/pty/sessions/{terminal}")).json
    assert (told["alive"], told["exit_code"], told["cols"], told["rows"]) == (False, 0, 99, 33)


@in_virtual_time
async def test_a_key_in_an_address_or_a_body_is_not_logged() -> None:
    written: list[bytes] = []
    app = stub_app(keys=KEYS, log=ExecutionLog(written.append, lambda: 0.0))
    await Socket([]).connect(app, "/instavm/v1/vms/x/pty/y/connect?api_key=key-1")
    await Client(app).get("/instavm/v1/sessions/sandboxes?api_key=key-1")
    await Client(app).post("/instavm/execute", {"command": 5, "api_key": "key-1"})
    assert [json.loads(line)["status"] for line in written] == [404, 401, 422]
    assert b"key-1" not in b"".join(written)


@exactly
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/volumes"),
        ("POST", "/v1/volumes/v1/files"),
        ("GET", "/v1/snapshots"),
        ("POST", "/v1/vms/x/suspend"),
        ("PATCH", "/v1/vms/x"),
        ("GET", "/v1/sessions/app-url/x"),
        ("GET", "/v1/users/me"),
        ("DELETE", "/v1/ssh-keys/5"),
        ("POST", "/v1/tapes"),
    ],
)
@in_virtual_time
async def test_what_is_no_code_sandbox_is_501_and_needs_a_key(
    base: str, dialect: str | None, method: str, path: str
) -> None:
    app = stub_app(keys=KEYS, dialect=dialect)
    assert (await Client(app).send(method, base + path)).status == 401
    answer = await Client(app, {"x-api-key": "key-1"}).send(method, base + path)
    assert (answer.status, set(answer.json)) == (501, {"detail"})


@exactly
@in_virtual_time
async def test_where_nothing_answers_the_words_are_the_dialects(base: str, dialect: str | None) -> None:
    client = Client(stub_app(dialect=dialect))
    nowhere = await client.get(f"{base}/v1/nowhere")
    assert (nowhere.status, set(nowhere.json)) == (404, {"detail"})
    wrong = await client.get(f"{base}/execute")
    assert (wrong.status, set(wrong.json), wrong.headers["allow"]) == (405, {"detail"}, "POST")


@exactly
@in_virtual_time
async def test_health_is_told_to_anybody(base: str, dialect: str | None) -> None:
    answer = await Client(stub_app(keys=KEYS, dialect=dialect)).get(f"{base}/health")
    assert (answer.status, answer.json) == (200, {"status": "healthy", "version": "1.2.3"})


@exactly
@pytest.mark.parametrize("error", [FileNotInSandbox("no"), SessionNotFound("no")])
@in_virtual_time
async def test_an_error_of_the_engine_is_the_whole_answer(base: str, dialect: str | None, error: Exception) -> None:
    engine = StubEngine(by_code({"x": error}))
    answer = await Client(stub_app(engine, dialect=dialect)).post(f"{base}/execute", {"command": "x"})
    assert (answer.status, set(answer.json)) == (404, {"detail"})
